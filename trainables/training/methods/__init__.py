"""What a student may be taught, one module a kind: each method is one function for one student and one upstream.

They take tensors of one batch and return the mean over it, as one number. Lanes and upstreams come by `torch.func.vmap`
over them: no shape depends on data, nothing is read back, and what is given is not changed. Weights that train beside a
student (regressors, projectors) and what goes on from batch to batch (memory banks) are an `nn.Module`, which another
function makes for the shapes at hand. Each function's docstring names the paper's equation, the weight that was
published for it, and where this differs from torchdistill 1.1.5.
"""
