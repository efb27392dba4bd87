"""What the images of a batch are to each other: distances, angles and similarities of their embeddings.

A student need not be as wide as its teacher for these, and they have no weights of their own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from takd.trainables.training.methods.known_gradients import with_gradients

# Squared, over the squares of both lengths: nearer than that, rounding decides, and two images count as one.
LEAST_DISTANCE = 1e-6
AT_ONCE = 2**17  # angles


def rkd(student: Tensor, teacher: Tensor, labels: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Park et al. 2019, L_RKD-D and L_RKD-A: what pairs of images are apart, and what triples of them enclose.

    student `[images, d_s]` and teacher `[images, d_t]` are embeddings. Huber losses of distances over their mean, and
    of cosines of angles, means over all pairs and all triples. Published: 25 and 50 beside the cross-entropy.

    torchdistill: the same formula, with no defaults (its example has 1 and 2). Its cosines are products of all
    normalised differences, `[images^2, d]`: 2 * images^3 * d operations. Here they come from the embeddings'
    products `[images, images]` (`<a - b, c - b> = ac - ab - bc + bb`), images^3 operations whatever d.
    """
    own, upstream = _squares(student), _squares(teacher)
    apart = F.smooth_l1_loss(_distances(own), _distances(upstream))
    return distance * apart + angle * _angles(own, upstream)


def _squares(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Products of all pairs of centred embeddings, and their squared distances: `[images, images]` each."""
    centred = embedding - embedding.mean(dim=0)
    products = centred @ centred.mT
    own = products.diagonal(dim1=-2, dim2=-1)
    lengths = own.unsqueeze(0) + own.unsqueeze(1)
    squared = lengths - 2 * products
    return products, torch.where(squared > LEAST_DISTANCE * lengths, squared, 0.0)


def _distances(squares: tuple[Tensor, Tensor]) -> Tensor:
    """Over the mean of all pairs'."""
    squared = squares[1]
    apart = squared > 0
    distances = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    images = len(distances)
    mean = distances.sum() / max(images * (images - 1), 1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angles(own: tuple[Tensor, Tensor], upstream: tuple[Tensor, Tensor]) -> Tensor:
    """The Huber loss of all cosines, with its gradient: a few images' angles at a time, so that they stay in a cache.

    Of 256 images there are 17 million, and what autograd keeps of them takes five times as long.
    """
    products, squared = (each.detach() for each in own)
    inverse, their_inverse = _inverse(squared), _inverse(upstream[1])
    images = len(products)
    loss, toward_products, at_middles, over_lengths = products.new_zeros(()), torch.zeros_like(products), [], []
    step = max(AT_ONCE // images**2, 1)
    for start in range(0, images, step):
        part = slice(start, start + step)
        cosines = _cosines(products, inverse, part)
        difference = cosines - _cosines(upstream[0], their_inverse, part)
        bounded = difference.clamp(-1, 1)  # the derivative
        loss = loss + (bounded * (difference - bounded / 2)).sum()
        over_lengths.append((bounded * cosines).sum(dim=2))
        moved = bounded * inverse[part].unsqueeze(2) * inverse[part].unsqueeze(1)
        toward_products = toward_products + moved.sum(dim=0)
        at_middles.append(moved.sum(dim=2))
    # A cosine is `(ik - ij - kj + jj) / (|i - j| * |k - j|)`, and it is the same for k and i.
    at_middle = torch.cat(at_middles)
    toward_products = toward_products - 2 * at_middle + at_middle.sum(dim=1).diag_embed()
    toward_squared = -torch.cat(over_lengths) * inverse.square()
    triples = images**3
    return with_gradients(loss / triples, (own[0], toward_products / triples), (own[1], toward_squared / triples))


def _inverse(squared: Tensor) -> Tensor:
    """Of distances; 0 where two images are one."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)


def _cosines(products: Tensor, inverse: Tensor, part: slice) -> Tensor:
    """Of the angles at each image j of the part between i and k, `[j, i, k]`; 0 where two of them are one."""
    from_middle = products[part] - products.diagonal(dim1=-2, dim2=-1)[part].unsqueeze(1) / 2
    between = products - from_middle.unsqueeze(2)
    return between.sub_(from_middle.unsqueeze(1)).mul_(inverse[part].unsqueeze(2)).mul_(inverse[part].unsqueeze(1))


def pkt(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Passalis & Tefas 2018, section 3 with the cosine kernel: KL of how probable neighbours are.

    student `[images, d_s]` and teacher `[images, d_t]` are embeddings. As in the published code it is a mean over all
    pairs of images, an image being its own neighbour, with 1e-7 in each logarithm; hence the weight of 30000 that Tian
    et al. 2020 publish for it.

    torchdistill: the same, but a zero vector has gradients of not a number there, and none here.
    """
    theirs, own = _neighbours(teacher), _neighbours(student)
    return (theirs * ((theirs + 1e-7) / (own + 1e-7)).log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    """Probabilities `[images, images]`, 1 in sum for each image."""
    directed = directions(embedding, 1e-7)
    similarity = (directed @ directed.mT + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


def directions(vectors: Tensor, added: float = 0.0) -> Tensor:
    """Rows over their lengths, to which something may be added; a row of zeros stays one, with a finite gradient."""
    squared = vectors.square().sum(dim=1, keepdim=True)
    length = torch.where(squared > 0, squared, 1.0).sqrt()
    return vectors / (length + added)


def sp_pooled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Tung & Mori 2019, equation 4, on embeddings `[images, d_s]` and `[images, d_t]`.

    The products of all pairs of images, each image's of length 1, must be alike: the squared Frobenius norm of the
    difference, over images^2. Published: 3000 beside the cross-entropy, for maps (`sp`).
    """
    return (_similarities(student) - _similarities(teacher)).square().mean()


def sp(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Tung & Mori 2019, equation 4: products of images' maps, `[images, channels, height, width]`.

    In sum over the layers given; published for the last map before pooling, with the weight 3000 beside the
    cross-entropy. Maps need not be of one size.

    torchdistill divides an image's products by the sum of their absolute values, not by their length: `1` there is
    the second argument of `normalize`, which is p. The published code and equation 3 have the length. Its gradient is
    not a number where both are alike, and 1e12 for a map of zeros.
    """
    each = [
        sp_pooled(own.flatten(1), upstream.flatten(1), labels) for own, upstream in zip(student, teacher, strict=True)
    ]
    return torch.stack(each).sum()


def _similarities(vectors: Tensor) -> Tensor:
    return directions(vectors @ vectors.mT)
