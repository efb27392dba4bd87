"""The study graph: stages once each, in the order that what they learn from allows."""

from collections.abc import Collection
from typing import Any

import pytest
from conftest import make_stage

from takd.search_spaces import Given, Kept, Left, LeftName, Path, Recipe, Stage, ViewName, frozen_for, frozen_of
from takd.search_spaces.stage import FRESH_SEED
from takd.study.search.graph import Group, Proposal, StageGraph

TEACHER = make_stage("mlp-64", role="teacher")
ASSISTANT = make_stage("mlp-16", role="assistant", upstream=(TEACHER,))


def takd(seed: int = 0, temperature: float = 4.0) -> Path:
    student = make_stage(upstream=(ASSISTANT,), seed=seed, temperature=temperature)
    return Path(arm="takd:mlp-16", student=student)


def kd(seed: int = 0) -> Path:
    return Path(arm="kd", student=make_stage(upstream=(TEACHER,), seed=seed))


class Store:
    """A fake artifact store: descriptions with an accuracy, and all soft targets that are asked for."""

    def __init__(self, *there: Stage) -> None:
        self.there = {stage.key: 0.5 for stage in there}
        self.below: set[str] = set()

    def artifact(self, stage: Stage) -> dict[str, Any] | None:
        accuracy = self.there.get(stage.key)
        return None if accuracy is None else {"outcome": {"metrics": {"validation": {"accuracy": accuracy}}}}

    def lacking(self, stage: Stage, description: Any, views: Collection[ViewName]) -> Collection[ViewName]:
        return []

    def lacking_frozen(self, stage: Stage, names: Collection[LeftName]) -> Collection[LeftName]:
        return [name for name in names if frozen_of(stage, name).key not in self.below]

    def derive_below(self, graph: StageGraph, stage: Stage, part: Collection[LeftName] | None = None) -> None:
        """Of the layers that stand still below it."""
        self.below |= {frozen_of(stage, name).key for name in (frozen_for(stage) if part is None else part)}
        graph.finish(stage.key, None if part is None else frozenset(part))

    def train(self, graph: StageGraph, stage: Stage, accuracy: float = 0.5) -> None:
        self.there[stage.key] = accuracy
        graph.finish(stage.key)


def taken(graph: StageGraph) -> list[str]:
    names = []
    while group := next(graph.groups(), None):
        for node in graph.take(group, 100):
            graph.start(node.stage.key)
            names.append(node.stage.name.split(" T=")[0])
    return names


def test_stages_come_out_when_what_they_learn_from_exists():
    store = Store()
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (takd(),)))
    assert taken(graph) == ["teacher mlp-64 s0"]
    store.train(graph, TEACHER)
    assert taken(graph) == ["assistant mlp-16 <- mlp-64"]
    store.train(graph, ASSISTANT)
    assert taken(graph) == ["student mlp-4 <- mlp-16 <- mlp-64"]


def test_a_stage_comes_out_once_however_many_paths_share_it():
    store = Store()
    graph = StageGraph(store)
    for number in range(5):
        graph.add(Proposal(number, "setting", (takd(seed=number), kd(seed=number))))
    assert taken(graph) == ["teacher mlp-64 s0"]
    store.train(graph, TEACHER)
    assert sorted(taken(graph)) == ["assistant mlp-16 <- mlp-64", *["student mlp-4 <- mlp-64"] * 5]


def test_what_others_learn_from_comes_out_first():
    graph = StageGraph(Store(TEACHER))
    graph.add(Proposal(0, "setting", (kd(),)))
    graph.add(Proposal(1, "setting", (takd(),)))
    assert taken(graph) == ["assistant mlp-16 <- mlp-64", "student mlp-4 <- mlp-64"]


def test_what_exists_is_cached_and_not_trained():
    graph = StageGraph(Store(TEACHER, ASSISTANT, takd().student))
    graph.add(Proposal(0, "setting", (takd(),)))
    assert taken(graph) == []
    assert [proposal.number for proposal in graph.close_finished()] == [0]
    assert all(node.cached for node in graph.nodes.values())
    assert graph.counts["teacher"]["cached"] == 1


def test_a_failed_stage_fails_its_paths_with_the_reason_and_no_other():
    store = Store()
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (takd(),)))
    graph.add(Proposal(1, "setting", (kd(),)))
    taken(graph)
    store.train(graph, TEACHER)
    taken(graph)
    graph.fail(ASSISTANT.key, "out of memory")
    [closed] = graph.close_finished()
    assert closed.number == 0
    assert graph.nodes[takd().student.key].reason == "assistant mlp-16 failed: out of memory"
    assert graph.nodes[kd().student.key].state == "running"


def test_a_path_that_is_proposed_after_its_teacher_failed_fails_at_once():
    graph = StageGraph(Store())
    graph.add(Proposal(0, "setting", (kd(),)))
    taken(graph)
    graph.fail(TEACHER.key, "a bad disk")
    graph.add(Proposal(1, "setting", (takd(),)))
    assert graph.nodes[takd().student.key].reason == "assistant mlp-16 failed: teacher mlp-64 failed: a bad disk"
    assert len(graph.close_finished()) == 2


def test_a_proposal_closes_when_all_its_students_have_ended():
    store = Store(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (kd(0), kd(1), kd(2))))
    taken(graph)
    store.train(graph, kd(0).student, 0.8)
    graph.prune(kd(1).student.key)
    assert graph.close_finished() == []
    store.train(graph, kd(2).student, 0.9)
    assert len(graph.close_finished()) == 1
    assert graph.best_by_arm == {"kd": pytest.approx(0.85)}  # of those that ended


def test_the_best_of_an_arm_is_the_best_mean_over_all_seeds_of_a_configuration():
    store = Store(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (kd(0), kd(1))))
    taken(graph)
    for seed, accuracy in ((0, 0.8), (1, 0.9)):
        store.train(graph, kd(seed).student, accuracy)
    graph.close_finished()
    assert graph.best_by_arm == {"kd": pytest.approx(0.85)}


def test_a_stage_without_its_artifact_has_failed_whatever_it_said():
    graph = StageGraph(Store())
    graph.add(Proposal(0, "setting", (kd(),)))
    taken(graph)
    graph.finish(TEACHER.key)
    assert graph.nodes[TEACHER.key].reason == "its artifact is not in the store"


def test_counts_are_the_states_of_the_nodes():
    store = Store(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (takd(), takd(seed=1), kd())))
    taken(graph)
    store.train(graph, kd().student)
    for role, states in graph.counts.items():
        for state, number in states.items():
            nodes = [node for node in graph.nodes.values() if node.stage.role == role]
            assert number == sum(("cached" if node.cached else node.state) == state for node in nodes)


def labels(seed: int) -> Path:
    return Path(arm="labels", student=make_stage(seed=seed))


def students(graph: StageGraph, number: int) -> Group:
    graph.add(Proposal(0, "setting", tuple(labels(seed) for seed in range(number))))
    group = next(graph.groups(), None)
    assert group is not None
    return group


def test_stages_of_one_shape_are_taken_together_and_in_order():
    graph = StageGraph(Store())
    group = students(graph, 5)
    assert graph.ready(group) == 5
    assert [node.stage.seed for node in graph.take(group, 3)] == [0, 1, 2]
    assert [node.stage.seed for node in graph.take(group, 3)] == [3, 4]
    assert next(graph.groups(), None) is None


def test_stages_of_another_shape_or_role_are_another_group():
    graph = StageGraph(Store())
    other = make_stage("mlp-5")
    graph.add(Proposal(0, "setting", (labels(0), Path(arm="labels", student=other))))
    group = next(graph.groups(), None)
    assert group is not None
    assert [node.stage for node in graph.take(group, 9)] == [labels(0).student]
    assert [node.stage for node in graph.take(next(graph.groups(), None) or group, 9)] == [other]


def test_the_stage_that_kills_its_workers_is_soon_alone_and_fails_alone():
    graph = StageGraph(Store())
    group = students(graph, 16)
    companies = []
    while graph.nodes[labels(3).student.key].state != "failed":
        nodes = graph.take(next(graph.groups(), None) or group, 16)
        for node in nodes:
            graph.start(node.stage.key)
        if labels(3).student in [node.stage for node in nodes]:
            companies.append(len(nodes))
            graph.retry([node.stage.key for node in nodes], "its worker died", max_failures=1)
    assert companies == [16, 4, 1, 1]
    assert graph.counts["student"]["failed"] == 1


class StoreWithViews(Store):
    """Has the soft targets that a test says, by stage and view."""

    def __init__(self, *there: Stage) -> None:
        super().__init__(*there)
        self.derived: dict[str, set[ViewName]] = {}

    def lacking(self, stage: Stage, description: Any, views: Collection[ViewName]) -> Collection[ViewName]:
        return [view for view in views if view not in self.derived.get(stage.key, set())]

    def derive(self, graph: StageGraph, stage: Stage, *views: ViewName) -> None:
        """What a worker does that is given a stage to be derived from; of a given one it leaves the artifact too."""
        self.there.setdefault(stage.key, 0.5)
        self.derived.setdefault(stage.key, set()).update(views)
        graph.finish(stage.key)


def works(graph: StageGraph) -> list[tuple[str, str]]:
    """Of all that is ready: role and work; all of it starts."""
    found = []
    while group := next(graph.groups(), None):
        for node in graph.take(group, 100):
            found.append((node.stage.role, group.work))
            graph.start(node.stage.key)
    return found


# The same stage as a student on labels alone, and as the teacher of another: one key.
LONE = make_stage("mlp-64")
TAUGHT = kd()


@pytest.mark.parametrize("state", ["ready", "taken", "running", "done", "cached", "pruned"])
def test_a_student_that_others_are_to_learn_from_keeps_its_weights(state):
    """It is trained once, if at all; its soft targets are derived, or come with the training that knew of it."""
    assert LONE.key == TEACHER.key
    store = StoreWithViews(*([LONE] if state == "cached" else []))
    graph = StageGraph(store)
    graph.add(Proposal(0, "labels", (Path(arm="labels", student=LONE),)))
    if state == "taken":
        graph.take(next(graph.groups(), None), 9)
    elif state in ("running", "done", "pruned"):
        assert works(graph) == [("student", "train")]
    if state == "done":
        store.train(graph, LONE)
    elif state == "pruned":
        graph.prune(LONE.key)
    graph.add(Proposal(1, "kd", (TAUGHT,)))
    if state == "taken":
        graph.start(LONE.key)
    if state in ("ready", "pruned"):  # it had no weights
        assert works(graph) == [("teacher", "train")]
        store.derived[TEACHER.key] = {None}
        store.train(graph, TEACHER)
    else:
        if state in ("taken", "running"):  # its worker knows nothing of it
            store.train(graph, LONE)
        assert works(graph) == [("teacher", "derive")]
        assert graph.nodes[TAUGHT.student.key].state == "waiting"
        store.derive(graph, TEACHER, None)
    assert works(graph) == [("student", "train")]
    store.train(graph, TAUGHT.student)
    assert len(graph.close_finished()) in (1, 2)
    assert not graph.open
    assert all(number >= 0 for states in graph.counts.values() for number in states.values())
    assert sum(sum(states.values()) for states in graph.counts.values()) == 2
    assert graph.nodes[LONE.key].trained is (state != "cached")
    assert graph.counts["teacher"]["cached" if state == "cached" else "done"] == 1


GIVEN = TEACHER.model_copy(update={"recipe": Recipe(), "given": Given(file="teacher.pth", checkpoint="c" * 64)})


def student_of(teacher: Stage, seed: int = 0, **recipe: Any) -> Path:
    return Path(arm="kd", student=make_stage(upstream=(teacher,), seed=seed, **recipe))


def test_a_given_teacher_is_derived_from_and_never_trained():
    store = StoreWithViews()
    graph = StageGraph(store)
    graph.add(Proposal(0, "kd", (student_of(GIVEN),)))
    assert works(graph) == [("teacher", "derive")]
    store.derive(graph, GIVEN, None)
    assert works(graph) == [("student", "train")]
    assert not graph.nodes[GIVEN.key].trained


def test_views_that_are_asked_for_later_are_derived_then_and_no_others():
    store = StoreWithViews()
    graph = StageGraph(store)
    graph.add(Proposal(0, "kd", (student_of(GIVEN),)))
    works(graph)
    store.derive(graph, GIVEN, None)
    graph.add(Proposal(1, "kd", (student_of(GIVEN, augment="crop-flip", views=2),)))
    assert graph.nodes[GIVEN.key].views == {None, "crop-flip 1"}
    assert works(graph) == [("teacher", "derive"), ("student", "train")]  # who learns from the first view need not wait
    store.derive(graph, GIVEN, "crop-flip 1")
    assert works(graph) == [("student", "train")]


def test_a_worker_that_did_not_know_all_views_is_asked_again():
    store = StoreWithViews()
    graph = StageGraph(store)
    graph.add(Proposal(0, "kd", (student_of(GIVEN),)))
    works(graph)
    graph.add(Proposal(1, "kd", (student_of(GIVEN, augment="crop-flip", views=2),)))
    store.derive(graph, GIVEN, None)
    assert works(graph) == [("teacher", "derive"), ("student", "train")]  # whose view is there


PER_EPOCH = {"augment": "crop-flip", "views": "per-epoch"}


def test_views_of_many_epochs_are_derived_by_several_workers_at_once():
    """20 views are three parts; who needs the first part alone trains when that is there."""
    teacher = make_stage("mlp-16", role="teacher", epochs=3, **PER_EPOCH)
    store = StoreWithViews()
    graph = StageGraph(store)
    long, short = student_of(teacher, epochs=20, **PER_EPOCH), student_of(teacher, epochs=5, **PER_EPOCH)
    graph.add(Proposal(0, "kd", (long,)))
    graph.add(Proposal(1, "kd short", (short,)))
    assert works(graph) == [("teacher", "train")]
    store.train(graph, teacher)  # it leaves weights alone
    [group] = graph.groups()
    assert (group.work, graph.ready(group)) == ("derive", 3)
    parts = []
    for _ in range(3):
        [node] = graph.take(group, 1)
        graph.start(node.stage.key)
        parts.append(node.parts[-1])
    assert [len(part) for part in parts] == [8, 8, 4]
    assert list(graph.groups()) == []
    names = long.student.recipe.view_names
    assert parts[0] == set(names[:8])

    def derive(part: Any) -> None:
        store.derived.setdefault(teacher.key, set()).update(part)
        graph.finish(teacher.key, part)

    derive(parts[1])
    assert list(graph.groups()) == []  # nobody can train with these alone
    derive(parts[0])
    assert graph.nodes[teacher.key].state == "running"
    assert works(graph) == [("student", "train")]
    assert graph.nodes[short.student.key].state == "running"
    graph.retry([teacher.key], "its worker died", 3, {teacher.key: parts[2]})  # and a part is left to another
    [group] = graph.groups()
    [node] = graph.take(group, 1)
    assert node.parts == [parts[2]]
    graph.start(teacher.key)
    derive(parts[2])
    assert graph.nodes[teacher.key].state == "done"
    assert works(graph) == [("student", "train")]
    assert all(number >= 0 for states in graph.counts.values() for number in states.values())


def test_a_part_that_fails_for_good_fails_who_waits_for_it_whatever_other_parts_do():
    store = StoreWithViews()
    graph = StageGraph(store)
    path = student_of(make_stage("mlp-16", role="teacher", epochs=20, **PER_EPOCH), epochs=20, **PER_EPOCH)
    [teacher] = path.student.upstream
    graph.add(Proposal(0, "kd", (path,)))
    works(graph)
    store.train(graph, teacher)
    [group] = graph.groups()
    parts = []
    for _ in range(2):
        [node] = graph.take(group, 1)
        graph.start(teacher.key)
        parts.append(node.parts[-1])
    graph.retry([teacher.key], "no memory", 0, {teacher.key: parts[0]})
    store.derived[teacher.key] = set(parts[1])
    graph.finish(teacher.key, parts[1])
    assert [node.state for node in graph.nodes.values()] == ["failed", "failed"]
    assert list(graph.groups()) == []


def test_where_the_students_are_there_nothing_is_derived_for_them():
    path = student_of(TEACHER)
    graph = StageGraph(StoreWithViews(TEACHER, path.student))
    graph.add(Proposal(0, "kd", (path,)))
    assert works(graph) == []
    assert len(graph.close_finished()) == 1


def test_weights_that_are_gone_when_they_are_derived_from_are_trained_again():
    store = StoreWithViews(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "kd", (TAUGHT,)))
    assert works(graph) == [("teacher", "derive")]
    del store.there[TEACHER.key]
    graph.finish(TEACHER.key)
    assert works(graph) == [("teacher", "train")]
    store.derived[TEACHER.key] = {None}
    store.train(graph, TEACHER)
    assert works(graph) == [("student", "train")]
    assert graph.counts["teacher"]["done"] == 1


def test_a_worker_that_dies_while_it_derives_fails_the_stage_as_one_that_trains_does():
    store = StoreWithViews(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "kd", (TAUGHT,)))
    for _ in range(3):
        assert works(graph) == [("teacher", "derive")]
        graph.retry([TEACHER.key], "its worker died", max_failures=2)
    assert graph.nodes[TAUGHT.student.key].reason == "teacher mlp-64 failed: its worker died"


def test_stages_of_the_search_and_of_the_confirm_phase_do_not_train_together():
    graph = StageGraph(Store())
    graph.add(
        Proposal(0, "labels", tuple(Path(arm="labels", student=make_stage(seed=seed)) for seed in (0, FRESH_SEED)))
    )
    group = next(graph.groups(), None)
    assert group is not None
    assert (group.phase, graph.ready(group)) == ("search", 1)


def test_stages_are_trained_in_the_order_in_which_they_were_asked_for_whenever_they_became_ready():
    store = Store(TEACHER)
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (takd(0), takd(1))))  # these wait for an assistant
    graph.add(Proposal(1, "setting", (kd(2),)))
    store.train(graph, taken_stage(graph, "assistant"))
    [group] = graph.groups()
    assert [node.first_use for node in graph.take(group, 2)] == ["0.0", "0.1"]


def taken_stage(graph: StageGraph, role: str) -> Stage:
    [node] = graph.take(next(group for group in graph.groups() if group.role == role), 1)
    return node.stage


def test_a_student_that_was_ended_early_stays_so_unless_others_are_to_learn_from_it():
    epochs = [{"epoch": number, "val_accuracy": number / 10} for number in (1, 2, 3)]
    student = make_stage(upstream=(TEACHER,))
    graph = StageGraph(Store(TEACHER), pruned={student.key: epochs}, look_every=2)
    graph.add(Proposal(0, "setting", (Path(arm="kd", student=student),)))
    assert graph.nodes[student.key].state == "pruned"
    assert graph.nodes[student.key].looks == {2: 0.2}
    assert [proposal.number for proposal in graph.close_finished()] == [0]
    assistant = student.model_copy(update={"role": "assistant"})
    graph.add(Proposal(1, "setting", (Path(arm="takd:mlp-4", student=make_stage("mlp-2", upstream=(assistant,))),)))
    assert graph.nodes[student.key].state == "ready"


# Layers that stand still: what they give is derived once, for whoever starts from the same weights.


def above(seed: int = 0, upstream: tuple[Stage, ...] = (), **recipe: object) -> Stage:
    recipe = {"epochs": 3, "head_epochs": 1, "finetune_from": "b"} | recipe
    made = make_stage("m-1", pretrained="0" * 64, seed=seed, upstream=upstream, **recipe)
    return made.model_copy(update={"frozen": Kept(head="the head", rest="b")})


def by_seed(graph: StageGraph) -> list[str]:
    found = []
    while group := next(graph.groups(), None):
        for node in graph.take(group, 100):
            graph.start(node.stage.key)
            found.append(f"{group.work} {node.stage.role} s{node.stage.seed}")
    return found


def test_what_stands_still_is_derived_once_and_before_the_teacher_is_there():
    store = Store()
    graph = StageGraph(store)
    students = [above(seed, (TEACHER,)) for seed in range(3)]
    graph.add(Proposal(0, "setting", tuple(Path(arm="kd", student=each) for each in students)))
    assert by_seed(graph) == ["train teacher s0", "derive student s0"]
    store.derive_below(graph, students[0])
    assert by_seed(graph) == []  # the teacher is not there
    store.train(graph, TEACHER)
    assert by_seed(graph) == ["train student s0", "train student s1", "train student s2"]
    graph.add(Proposal(1, "other", (Path(arm="labels", student=above(9)),)))
    assert by_seed(graph) == ["train student s9"]


def test_what_is_kept_for_other_views_or_examples_is_another():
    names = {
        frozen_of(stage, name).key for stage in (above(), above(5, learning_rate=0.1)) for name in frozen_for(stage)
    }
    assert len(names) == 4  # the head's and the cut's, of training and validation images
    viewed = above(augment="crop-flip", views=2)
    assert [Left.parse(name).view for name in frozen_for(viewed)] == [None, None, None, "crop-flip 1", None]
    fewer = {frozen_of(above(examples=50), name).key for name in frozen_for(above())}
    assert len(fewer - names) == 2  # validation is the same


def test_a_stage_that_needs_more_derives_what_is_not_there():
    store = Store()
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", (Path(arm="labels", student=above()),)))
    assert by_seed(graph) == ["derive student s0"]
    other = above(1, augment="crop-flip", views=3)
    graph.add(Proposal(1, "other", (Path(arm="labels", student=other),)))
    [node] = graph.take(next(graph.groups()), 1)
    assert {Left.parse(name).view for name in node.parts[0]} == {"crop-flip 1", "crop-flip 2"}
    graph.start(other.key)
    store.derive_below(graph, other, node.parts[0])
    assert by_seed(graph) == []  # it waits for what is derived for the first
    store.derive_below(graph, above())
    assert by_seed(graph) == ["train student s0", "train student s1"]


def test_where_the_one_that_derives_fails_another_does():
    store = Store()
    graph = StageGraph(store)
    graph.add(Proposal(0, "setting", tuple(Path(arm="labels", student=above(seed)) for seed in range(2))))
    assert by_seed(graph) == ["derive student s0"]
    graph.retry([above().key], "died", max_failures=0)
    assert graph.nodes[above().key].state == "failed"
    assert by_seed(graph) == ["derive student s1"]


def test_views_of_what_stands_still_are_derived_side_by_side():
    store = Store()
    graph = StageGraph(store)
    student = above(epochs=24, augment="crop-flip", views="per-epoch")
    graph.add(Proposal(0, "setting", (Path(arm="labels", student=student),)))
    group = next(graph.groups())
    assert graph.ready(group) == 4  # 1 + 23 views, and twice the validation images: in parts of 8
    parts = []
    while group := next(graph.groups(), None):
        [node] = graph.take(group, 1)
        graph.start(student.key)
        parts.append(node.parts[-1])
    assert sorted(map(len, parts)) == [2, 8, 8, 8]
    for part in parts:
        assert graph.nodes[student.key].state == "running"
        store.derive_below(graph, student, part)
    assert by_seed(graph) == ["train student s0"]
