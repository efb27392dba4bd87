"""What Optuna is asked and told. What storages could do differently is one suite for a journal file and for a real
PostgreSQL; what samplers, spaces and budgets come to is computed here, and tried with a journal alone.
"""

from collections import Counter
from typing import Any

import pytest
from conftest import Found, complete, proposals, tiny_space
from optuna.trial import TrialState

from takd.analysis.tables import hyperparameters_of
from takd.search_spaces import DatasetFingerprint, InputError, Space
from takd.study.folder import StudyFolder, study_folder
from takd.study.search import sampling
from takd.study.search.graph import Proposal, StageGraph
from takd.study.search.optimization import Search, configuration_name, create_search, open_search

MNIST = DatasetFingerprint(name="mnist", digest="d", split_seed=0, sizes={"train": 50000})


@pytest.fixture
def folder(stored) -> StudyFolder:
    return stored


@pytest.fixture
def journal(tmp_path) -> StudyFolder:
    folder = study_folder(str(tmp_path), "tiny")
    folder.prepare()
    return folder


def start(folder: StudyFolder, space: Space | None = None) -> Search:
    return create_search(folder, space or tiny_space(), MNIST)


def contents(folder: StudyFolder) -> Any:
    """All that is stored of the study."""
    search = open_search(folder)
    return search.study.user_attrs, search.study.get_trials()


def test_every_arm_gets_its_coverage_before_the_sampler_is_free(journal):
    arms = [proposal.paths[0].arm for proposal in proposals(start(journal, tiny_space(trials=12, coverage=3)))]
    assert sorted(arms[:9]) == ["kd"] * 3 + ["labels"] * 3 + ["takd:mlp-16"] * 3
    assert len(arms) == 12


@pytest.mark.parametrize(("sampler", "coverage"), [("tpe", 2), ("random", 1), ("tpe", 0)])
def test_an_arm_with_nothing_to_tune_gets_its_coverage_and_no_more(tmp_path, sampler, coverage):
    folder = study_folder(str(tmp_path), "tiny")
    folder.prepare()
    search, arms = start(folder, tiny_space(trials=26, coverage=coverage, sampler=sampler)), []
    while proposal := search.ask():
        complete(search, proposal, accuracy=0.9 if proposal.arm == "labels" else 0.5)  # the one that is best
        arms.append(proposal.arm)
    assert arms.count("labels") == max(1, coverage)
    assert min(arms.count("kd"), arms.count("takd:mlp-16")) >= 3


def test_a_study_of_labels_alone_spends_its_budget_on_them(tmp_path):
    folder = study_folder(str(tmp_path), "tiny")
    folder.prepare()
    assert len(proposals(start(folder, tiny_space(arms=["labels"], trials=4, coverage=1)))) == 4


def test_a_configuration_proposed_again_gets_fresh_seeds(journal):
    labels = [
        each for each in proposals(start(journal, tiny_space(trials=9, coverage=3))) if each.paths[0].arm == "labels"
    ]
    seeds = [path.student.seed for each in labels for path in each.paths]
    assert seeds == list(range(len(seeds)))
    assert len(seeds) >= 6


def test_the_grid_is_proposed_point_by_point(journal):
    space = tiny_space(sampler="grid", trials=None, student__lambda={"choices": [0.2, 0.8]})
    search = start(journal, space)
    points = {tuple(sorted(trial.params.items())) for _ in proposals(search) for trial in search.proposed()}
    assert len(points) == 1 + 2 * 2 * 2
    assert search.remaining == 0


def test_a_trial_is_told_the_mean_over_its_seeds(folder):
    search = start(folder)
    proposal = search.ask()
    assert proposal is not None
    complete(search, proposal, accuracy=0.75)
    [trial] = search.proposed()
    assert trial.value == 0.75
    assert trial.user_attrs["arm"] == "takd:mlp-16"


def test_a_failed_trial_keeps_the_reason_of_every_stage_that_failed(folder):
    search = start(folder)
    proposal = search.ask()
    assert proposal is not None
    graph = StageGraph(Found())
    graph.add(proposal)
    teacher = proposal.paths[0].stages[0]
    graph.fail(teacher.key, "no memory")
    search.tell(proposal, graph)
    [trial] = open_search(folder).proposed()
    assert trial.state == TrialState.FAIL
    assert trial.user_attrs["failures"][teacher.key] == "no memory"
    assert len(trial.user_attrs["failures"]) == 4  # teacher, assistant and two students


def fail(search: Search, proposal: Proposal, lasting: bool = False) -> None:
    graph = StageGraph(Found())
    graph.add(proposal)
    graph.fail(proposal.paths[0].stages[0].key, "no memory", lasting)
    for path in proposal.paths:
        if graph.nodes[path.student.key].state != "failed":
            graph.fail(path.student.key, "no memory")
    search.tell(proposal, graph)


def test_what_failed_is_tried_again_by_the_next_run_and_counts_in_no_budget_or_grid(folder):
    space = tiny_space(sampler="grid", trials=None)
    search = start(folder, space)
    first, *others = [search.ask() for _ in range(5)]
    fail(search, first)
    for each in others:
        complete(search, each)
    assert search.ask() is None  # not in the run in which it failed: the cause is still there
    again = start(folder, space)
    assert (again.try_again(), again.try_again()) == (1, 0)
    assert (again.remaining, len(again.proposed())) == (1, 4)
    third = start(folder, space)  # the process ended before the trial was asked for
    assert third.try_again() == 0
    proposal = third.ask()
    assert proposal.number == 5
    assert (proposal.configuration, proposal.paths) == (first.configuration, first.paths)
    fail(third, proposal)
    fourth = start(folder, space)
    assert fourth.try_again() == 1
    assert fourth.reclaim() == []
    complete(fourth, fourth.ask())
    assert fourth.ask() is None
    assert not fourth.is_open
    assert [trial.number for trial in fourth.proposed()] == [1, 2, 3, 4, 6]
    assert {trial.state for trial in fourth.proposed()} == {TrialState.COMPLETE}
    assert start(folder, space.model_copy(update={"description": "more"})).try_again() == 0


def test_what_is_tried_again_stays_in_its_cell_and_changes_no_draw_of_others(journal, tmp_path):
    drawn: dict[str, Any] = {"sampler": "random", "student__temperature": {"low": 1.0, "high": 9.0}}
    space = tiny_space(arms=["kd"], trials=6, coverage=0, factors={"student.model": ["mlp-4", "mlp-8"]}, **drawn)
    undisturbed = study_folder(str(tmp_path / "undisturbed"), "tiny")
    undisturbed.prepare()
    expected = proposals(start(undisturbed, space))
    first = start(journal, space)
    fail(first, first.ask())
    complete(first, first.ask())
    again = start(journal, space)
    assert again.try_again() == 1
    assert start(journal, space).try_again() == 0  # nor queues what is there anew
    trained = {(each.cell, each.configuration): each.paths for each in proposals(again)}
    assert trained == {(each.cell, each.configuration): each.paths for each in expected if each.number != 1}
    assert not again.is_open
    assert Counter(again.proposal_of(trial).cell for trial in again.proposed()) == {
        "student.model=mlp-4": len(expected) // 2,
        "student.model=mlp-8": len(expected) // 2,
    }


def test_what_a_key_says_of_a_failure_is_not_tried_again(journal):
    search = start(journal, tiny_space(seeds=1))
    lasts, passes = search.ask(), search.ask()
    fail(search, lasts, lasting=True)
    fail(search, passes)
    again = start(journal, tiny_space(seeds=1))
    assert again.try_again() == 1
    teacher, *_, student = lasts.paths[0].stages
    assert again.lasting[teacher.key] == "no memory"
    assert again.lasting[student.key].endswith(" failed: no memory")
    graph = StageGraph(Found(), again.lasting)
    graph.add(lasts)
    assert {node.state for node in graph.nodes.values()} == {"failed"}
    assert graph.nodes[student.key].reason == again.lasting[student.key]


def test_the_best_of_a_resumed_run_counts_the_students_of_a_pruned_trial_as_the_tables_do(folder):
    search = start(folder)
    proposal = search.ask()
    assert proposal is not None
    ended, pruned = (path.student.key for path in proposal.paths)
    outcome = {"metrics": {"validation": {"accuracy": 0.75}}, "train_seconds": 1.0}
    graph = StageGraph(Found(lambda stage: {"outcome": outcome} if stage.key == ended else None))
    graph.add(proposal)
    graph.prune(pruned)
    search.tell(proposal, graph)
    assert open_search(folder).finished() == [(proposal.arm, proposal.configuration, [0.75])]


def test_trials_that_ran_when_a_process_died_are_proposed_again(folder):
    first = start(folder)
    running = [first.ask(), first.ask()]
    again = start(folder)
    assert again.reclaim() == running
    assert again.remaining == 4


def test_a_trial_that_was_asked_but_not_proposed_whole_is_proposed_as_it_would_have_been(folder, tmp_path):
    undisturbed = study_folder(str(tmp_path / "undisturbed"), "tiny")
    undisturbed.prepare()
    expected = proposals(start(undisturbed))
    first = start(folder)
    first.study.ask()  # the process dies before the paths are made
    again = start(folder)
    assert again.reclaim() == expected[:1]
    assert proposals(again) == expected[1:]


def test_what_is_drawn_does_not_depend_on_how_often_a_study_went_on(journal, tmp_path):
    space = tiny_space(sampler="random", trials=9, student__temperature={"low": 1.0, "high": 9.0})
    undisturbed = study_folder(str(tmp_path / "undisturbed"), "tiny")
    undisturbed.prepare()
    expected = proposals(start(undisturbed, space))
    assert [start(journal, space).ask() for _ in expected] == expected


def test_more_trials_extend_a_finished_study(folder):
    assert len(proposals(start(folder))) == 6
    assert not start(folder).is_open
    assert len(proposals(start(folder, tiny_space(trials=8)))) == 2


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"student__lambda": 0.5}, "student.lambda was 0.7, is 0.5"),
        ({"teacher__model": "mlp-65"}, 'teacher.model was "mlp-64", is "mlp-65"'),
        ({"seeds": 3}, "seeds was 2, is 3"),
    ],
)
def test_a_name_with_another_space_is_refused_with_the_difference(journal, changes: Any, difference):
    proposals(start(journal))
    before = contents(journal)
    with pytest.raises(InputError, match="study tiny exists with another space: ") as caught:
        start(journal, tiny_space(**changes))
    assert difference in str(caught.value)
    assert contents(journal) == before


def test_resources_and_words_may_change(journal):
    start(journal)
    start(journal, tiny_space(description="other words", resources={"teacher": {"cpu": 2}}))


def test_another_datasets_content_is_another_study(journal):
    start(journal)
    other = MNIST.model_copy(update={"digest": "e"})
    with pytest.raises(InputError, match='digest was "d", is "e"'):
        create_search(journal, tiny_space(), other)


def test_a_study_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"study nothing: none in .*; `takd run` starts one"):
        open_search(study_folder(str(tmp_path), "nothing"))


def test_a_database_that_does_not_answer_is_one_line_without_its_password(tmp_path):
    folder = study_folder(str(tmp_path), "tiny", "postgresql://someone:hush@127.0.0.1:1/takd")
    with pytest.raises(InputError, match=r"--storage postgresql://someone:\*\*\*@127.0.0.1:1/takd: can't be") as caught:
        open_search(folder)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_database_of_an_unknown_kind_is_one_line(tmp_path):
    with pytest.raises(InputError, match="--storage nonsense: can't be opened"):
        open_search(study_folder(str(tmp_path), "tiny", "nonsense"))


def test_a_journal_whose_last_line_was_cut_off_goes_on(tmp_path):
    folder = study_folder(str(tmp_path), "tiny")
    folder.prepare()
    search = start(folder)
    complete(search, search.ask())
    whole = folder.journal.read_bytes()
    with folder.journal.open("ab") as journal:
        journal.write(b'{"op_code":5,"worker_id"')
    again = start(folder)
    assert len(again.proposed()) == 1
    assert folder.journal.read_bytes().startswith(whole)
    assert len(proposals(again)) == 5
    assert len(open_search(folder).proposed()) == 6


def test_a_bucket_needs_a_database(bucket):
    with pytest.raises(InputError, match="a bucket can't hold Optuna's journal; give --storage or TAKD_STORAGE"):
        study_folder(bucket, "tiny")


def test_of_a_long_study_the_sampler_sees_the_newest_trials_and_the_best_of_the_others(journal, monkeypatch):
    monkeypatch.setattr(sampling, "NEWEST", 8)
    monkeypatch.setattr(sampling, "BEST", 4)
    search = start(journal, tiny_space(trials=24, coverage=1, arms=["kd", "takd:mlp-16"]))
    for number in range(23):
        proposal = search.ask()
        assert proposal is not None
        complete(search, proposal, accuracy=1 / (1 + abs(number - 5)))  # the sixth is the best
    search.ask()
    sampler = search.study.sampler
    assert isinstance(sampler, sampling.Shown)
    assert [trial.number for trial in sampler.seen] == [3, 4, 5, 6, *range(15, 23)]


def test_no_sampler_chooses_a_cell_and_tpe_learns_from_its_own_cell_alone(journal):
    cells = {"teacher.model": ["mlp-64", "mlp-128"]}
    space = tiny_space(factors=cells, trials=4, coverage=1, student__temperature={"low": 1.0, "high": 9.0})
    asked = proposals(start(journal, space))
    assert [each.cell for each in asked] == ["teacher.model=mlp-64", "teacher.model=mlp-128"] * 4
    assert asked[1].configuration.startswith("takd:mlp-16 teacher.model=mlp-128 temperature=")
    more = start(journal, space.model_copy(update={"trials": 6}))
    assert more.remaining == 4
    added = []
    while proposal := more.ask():
        own = [trial.number for trial in more.study.sampler.seen]  # type: ignore[attr-defined]
        assert {number % 2 for number in own} == {proposal.number % 2}
        complete(more, proposal)
        added.append(proposal.cell)
    assert added == ["teacher.model=mlp-64", "teacher.model=mlp-128"] * 2


def test_values_that_are_added_to_factors_extend_a_study_and_what_there_was_stays(journal):
    """Twice: while a trial runs and others wait, and when all have ended. Each new cell has its own search."""
    changes: dict[str, Any] = {"trials": 4, "coverage": 1, "student__temperature": {"low": 1.0, "high": 9.0}}
    teachers, epochs = ["mlp-64", "mlp-128"], {"student.recipe.epochs": [3]}
    one = tiny_space(factors={"teacher.model": teachers} | epochs, **changes)
    two = tiny_space(factors={"teacher.model": ["mlp-256", *reversed(teachers)]} | epochs, **changes)
    three = tiny_space(factors=two.factors | {"student.recipe.epochs": [5, 3]}, **changes)
    search = start(journal, one)
    first = [search.ask() for _ in range(3)]
    for each in first[:-1]:
        complete(search, each)
    again = start(journal, two)
    assert again.reclaim() == first[-1:]
    complete(again, first[-1])
    first += proposals(again)
    assert Counter(each.cell for each in first if each) == {cell.name: 4 for cell in two.cells}
    again.choose([each.configuration for each in first[:1] if each])
    assert again.late_cells == start(journal, two).late_cells == set()
    last = proposals(start(journal, three))
    assert Counter(each.cell for each in last) == {cell.name: 4 for cell in three.cells if "epochs=5" in cell.name}
    assert not start(journal, three).is_open
    stored = open_search(journal)
    assert stored.late_cells == {each.cell for each in last}
    assert [stored.proposal_of(trial) for trial in stored.proposed()] == [*first, *last]
    for each in last:
        assert {path.student.recipe.epochs for path in each.paths} == {5}
        taught_by = {stage.model for path in each.paths for stage in path.stages if stage.role == "teacher"}
        assert all(f"teacher.model={model} " in each.cell for model in taught_by)
    with pytest.raises(
        InputError, match=r"tiny has compared teacher.model mlp-256, which the space leaves out; a factor"
    ):
        start(journal, tiny_space(factors=three.factors | {"teacher.model": teachers}, **changes))
    with pytest.raises(InputError, match=r'exists with another space: .*factors was \[\["teacher.model"'):
        start(journal, tiny_space(factors={"teacher.model": two.factors["teacher.model"]}, **changes))


def test_a_choice_stands_until_another_trial_has_ended_well(journal):
    search = start(journal, tiny_space(confirm={"seeds": 1}))
    first = proposals(search)
    assert not search.choice_stands
    names = list({each.arm: each.configuration for each in first}.values())
    search.choose(names)
    again = start(journal, search.space)
    assert again.choice_stands
    assert [each.configuration for each in again.confirming()] == names
    more = start(journal, tiny_space(confirm={"seeds": 1}, trials=7))
    assert more.choice_stands
    proposals(more)
    assert not more.choice_stands
    more.study.set_user_attr("confirmed_from", None)  # as an older version left it
    assert more.choice_is_old
    assert not more.choice_stands
    more.keep_choice()
    assert more.choice_stands


def test_a_study_of_another_training_revision_is_refused_and_left_as_it_is(folder):
    search = start(folder)
    proposals(search)
    search.study.set_user_attr("training_revision", 1)
    before = search.study.user_attrs, search.study.get_trials()
    for look in (lambda: start(folder), lambda: open_search(folder)):
        with pytest.raises(InputError, match=r"trained at training revision 1; this version of takd is at \d+"):
            look()
    assert (search.study.user_attrs, search.study.get_trials()) == before


ONE_ARM = {"arms": ["kd"], "coverage": 1, "trials": None, "sampler": "grid"}


def test_a_grid_that_goes_on_with_equal_numbers_has_nothing_new(journal):
    first = start(journal, tiny_space(**ONE_ARM, student__temperature={"choices": [1, 5]}))
    proposals(first)
    again = start(journal, tiny_space(**ONE_ARM, student__temperature={"choices": [1.0, 5.0, 5]}))
    assert proposals(again) == []
    assert len(again.study.trials) == 2


def test_a_study_that_was_begun_with_a_number_twice_goes_on(journal):
    search = start(journal, tiny_space(arms=["kd"], coverage=0, trials=1, student__temperature={"choices": [1, 4]}))
    older = search.study.ask()
    older.suggest_categorical("arm", ["kd"])
    chosen = older.suggest_categorical("temperature", [1, 1.0, 4])
    for name, value in {"arm": "kd", "path": "-", "seeds": [0, 1]}.items():
        older.set_user_attr(name, value)
    search.study.tell(older.number, 0.5)
    space = tiny_space(arms=["kd"], coverage=0, trials=6, student__temperature={"choices": [1, 1.0, 4]})
    again = start(journal, space)
    [path, _] = again.paths_of(again.proposed()[0])
    assert path.student.temperature == chosen
    keys = [path.student.key for each in proposals(again) for path in each.paths]
    assert len(keys) == len({*keys, path.student.key}) - 1 == 10
    assert {each.user_attrs["arm"] for each in open_search(journal).proposed()} == {"kd"}


def test_equal_numbers_have_one_name():
    assert configuration_name("kd", {"temperature": 10000.0}) == configuration_name("kd", {"temperature": 10000})


def test_two_settings_never_have_one_name():
    names = {configuration_name("kd", {"arm": "kd", "lambda": value}) for value in (0.702111, 0.702139, 0.7021)}
    assert len(names) == 3
    assert configuration_name("kd", {"arm": "kd", "temperature": 4.0, "lambda": 0.7}) == "kd temperature=4 lambda=0.7"
    assert {hyperparameters_of(name) for name in names} == {"lambda=0.7021"}
