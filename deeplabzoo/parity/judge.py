"""Comparisons: what every side answers to the same questions, judged against the referee and against one another.

An `Exam` holds the questions: network, weights, images, labels. `answers_of_worker` and `answers_of_referee` answer
it, `compare` judges.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deeplabzoo.backends.worker import Worker
from deeplabzoo.core import reference
from deeplabzoo.core import training as referee
from deeplabzoo.core.graph import Graph
from deeplabzoo.core.training import Training, loss_weights, seeded_labels
from deeplabzoo.core.weights import Weights
from deeplabzoo.errors import BackendError, WeightsError, WorkerError
from deeplabzoo.parity.cases import REFEREE, Case, Progress, output_shapes, seeded_image
from deeplabzoo.parity.compare import (
    BOUNDS,
    GRADIENT_BOUNDS,
    ONE_STEP_BOUNDS,
    TRAINING_BOUNDS,
    error,
    gradient_errors,
    label_agreement,
    training_errors,
    update_error,
)
from deeplabzoo.parity.report import Check, Row

LOSS = "loss"
"""Name of the loss among gradients and trained parameters."""

UPDATE = "update"
"""Name of what training moved, all parameters together."""


@dataclass(frozen=True)
class Exam:
    """What is asked of every side.

    Attributes:
        graph: the network.
        weights: its canonical weights.
        cases: inputs of the forward pass and the gradients.
        images: of each case, N, C, H, W, float64.
        checks: what is compared.
        labels: of each case, int64 N, H, W of the output; for gradients.
        training: settings of the training steps.
        lesson: input of the training steps, with its image and labels; None without that check.
        other: graph and weights that the workers run instead, to compare two models; None where they run the same.
    """

    graph: Graph
    weights: Weights
    cases: tuple[Case, ...]
    images: tuple[np.ndarray, ...]
    checks: tuple[Check, ...] = ("forward",)
    labels: tuple[np.ndarray, ...] = ()
    training: Training = field(default_factory=Training)
    lesson: tuple[Case, np.ndarray, np.ndarray] | None = None
    other: tuple[Graph, Weights] | None = None

    @property
    def kept(self) -> tuple[int, ...]:
        """Training steps after which everything is compared: the first and the last."""
        return tuple(sorted({1, self.training.steps}))


@dataclass
class Answers:
    """What a side made of an exam; a check that it did not reach is empty.

    Attributes:
        outputs: by case, by the output's name, N, C, H, W.
        gradients: by case, by the parameter's name, with `input` and `loss`.
        trained: by step, by the parameter's name, with `loss` (of the forward pass before the step).
    """

    outputs: list[dict[str, np.ndarray]] = field(default_factory=list)
    gradients: list[dict[str, np.ndarray]] = field(default_factory=list)
    trained: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


def make_exam(
    graph: Graph,
    weights: Weights,
    cases: Sequence[Case],
    *,
    checks: Sequence[Check] = ("forward",),
    training: Training | None = None,
    lesson: Case | None = None,
    seed: int = 0,
    photos: Sequence[tuple[Case, np.ndarray]] = (),
    other: tuple[Graph, Weights] | None = None,
) -> Exam:
    """The questions, with seeded images and labels.

    Args:
        graph: the network.
        weights: its canonical weights.
        cases: inputs of the forward pass and the gradients.
        checks: what is compared.
        training: settings of the training steps.
        lesson: input of the training steps; the first case by default.
        seed: of images and labels.
        photos: further cases with images of their own, preprocessed, 1, C, H, W.
        other: graph and weights that the workers run instead.

    Raises:
        GraphError: the network returns no logits, and gradients or training steps were asked for.
    """
    steps = training or Training()
    images = [seeded_image(graph, case, seed, n) for n, case in enumerate(cases)] + [image for _, image in photos]
    cases = [*cases, *(case for case, _ in photos)]
    labels: list[np.ndarray] = []
    if "gradients" in checks:
        labels = [seeded_labels(graph, c.batch, c.height, c.width, seed + n) for n, c in enumerate(cases)]
    taught = None
    if "training" in checks:
        case = lesson or cases[0]
        size = (case.batch, case.height, case.width)
        taught = (case, seeded_image(graph, case, seed, len(cases)), seeded_labels(graph, *size, seed + len(cases)))
    if labels or taught:
        loss_weights(graph, steps)
    return Exam(graph, weights, tuple(cases), tuple(images), tuple(checks), tuple(labels), steps, taught, other)


NO_GRADIENTS = "an exported model has no gradients"
"""Why a backend whose `GRADIENTS` are false takes no part in what needs them."""


def answers_of_referee(exam: Exam, tell: Progress = lambda line: None) -> Answers:
    """The truth, by numpy in float64."""
    answers = Answers()
    if "forward" in exam.checks:
        for case, image in zip(exam.cases, exam.images, strict=True):
            tell(f"{REFEREE}, {case}, forward")
            answers.outputs.append(reference.forward(exam.graph, exam.weights, image))
    for case, image, labels in zip(exam.cases, exam.images, exam.labels, strict=False):
        tell(f"{REFEREE}, {case}, gradients")
        loss, found, _ = referee.gradients(exam.graph, exam.weights, image, labels)
        answers.gradients.append({LOSS: np.array(loss), **found})
    if exam.lesson is not None:
        case, image, labels = exam.lesson
        for step, (loss, now) in enumerate(referee.train(exam.graph, exam.weights, image, labels, exam.training), 1):
            tell(f"{REFEREE}, {case}, training step {step}")
            if step in exam.kept:
                answers.trained[step] = {LOSS: np.array(loss), **now}
    return answers


def answers_of_worker(
    exam: Exam, worker: Worker, dtype: str, answers: Answers, tell: Progress = lambda line: None
) -> None:
    """Let a worker answer, in `dtype`, into `answers`, so that what was there before a failure is kept.

    Raises:
        BackendError, WorkerError: the worker can't, or died.
    """
    name = worker.backend.name
    worker.load(*(exam.other or (exam.graph, exam.weights)), dtype=dtype)
    if "forward" in exam.checks:
        for case, image in zip(exam.cases, exam.images, strict=True):
            tell(f"{name}, {case}, forward in {dtype}")
            outputs = worker.forward(image)
            _check_whole(name, "outputs", _shapes(outputs), output_shapes(exam.graph, case))
            answers.outputs.append(outputs)
    if not worker.backend.flags.GRADIENTS:
        return
    held = exam.graph.parameters()
    learned = {parameter: shape for parameter, shape in held.items() if referee.trainable(parameter)}
    for case, image, labels in zip(exam.cases, exam.images, exam.labels, strict=False):
        tell(f"{name}, {case}, gradients in {dtype}")
        loss, found = worker.gradients(image, labels)
        _check_whole(name, "gradients", _shapes(found), {**learned, referee.INPUT: image.shape})
        answers.gradients.append({LOSS: np.array(loss), **found})
    if exam.lesson is not None:
        case, image, labels = exam.lesson
        steps = worker.train(image, labels, exam.training, exam.kept)
        for step, (loss, now) in enumerate(steps, 1):
            tell(f"{name}, {case}, training step {step} in {dtype}")
            if step in exam.kept:
                kept = {parameter: now[parameter] for parameter in held if parameter in now}
                _check_whole(name, f"weights after step {step}", _shapes(kept), held)
                answers.trained[step] = {LOSS: np.array(loss), **kept}
        _check_whole(name, "training", *({f"step {n}": () for n in steps} for steps in (answers.trained, exam.kept)))


_Shapes = Mapping[str, tuple[int, ...]]


def _shapes(arrays: Mapping[str, np.ndarray]) -> _Shapes:
    return {name: array.shape for name, array in arrays.items()}


def _check_whole(name: str, what: str, made: _Shapes, wanted: _Shapes) -> None:
    """`WorkerError` where something is missing or strange: what nobody made nobody would judge."""
    for one in {**wanted, **made}:
        if made.get(one) != wanted.get(one):
            told = f"gave {one} of shape {made[one]}" if one in made else f"gave no {one}"
            expected = f"shape {wanted[one]}" if one in wanted else "none"
            raise WorkerError(f"{name} {told} among its {what}, expected {expected}: it runs another network")


def compare(
    exam: Exam,
    truth: Answers,
    answers: Mapping[str, Answers],
    *,
    dtype: str = "float64",
    bounds: Mapping[Check, float] | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Every comparison: in float64 all pairs and each side with the referee, otherwise each side with the referee.

    Args:
        exam: what was asked.
        truth: the referee's answers.
        answers: of the others, by name.
        dtype: what is judged.
        bounds: largest errors by check, where they are not the usual ones of the dtype.
        dtypes: what a side computed in, by name, where it is not `dtype`: its own bound holds for it.
    """
    sides = {**answers, REFEREE: truth}
    pairs = list(itertools.combinations(answers, 2)) if dtype == "float64" else []
    pairs += [(name, REFEREE) for name in answers]
    for check in exam.checks:
        for first, second in pairs:
            own = (dtypes or {}).get(first, dtype)
            for row in _COMPARE[check](exam, (first, sides[first]), (second, sides[second])):
                if row.name == UPDATE and row.step != 1 and own != "float64":
                    continue  # in a deep network with batch norm ten steps make the last bit of float32 all there is
                usual = usual_bound(own, check, row.step)
                yield dataclasses.replace(row, bound=(bounds or {}).get(check, usual))


def usual_bound(dtype: str, check: Check, step: int | None = None) -> float:
    """Largest error of a check in a dtype.

    Raises:
        BackendError: nobody has measured that.
    """
    table = {"forward": BOUNDS, "gradients": GRADIENT_BOUNDS}.get(check, TRAINING_BOUNDS)
    table = ONE_STEP_BOUNDS if step == 1 else table
    if dtype not in table:
        raise BackendError(f"{check} in {dtype}: expected one of {', '.join(table)}, in which it is judged")
    return table[dtype]


def judge(
    graph: Graph,
    weights: Weights,
    cases: Sequence[Case],
    workers: Sequence[tuple[Worker, str]],
    *,
    dtype: str = "float64",
    checks: Sequence[Check] = ("forward",),
    training: Training | None = None,
    lesson: Case | None = None,
    seed: int = 0,
) -> tuple[Row, ...]:
    """Compare running workers, each with the dtype it computes in; a failure of a worker is raised.

    Arguments as for `make_exam` and `compare`.
    """
    exam = make_exam(graph, weights, cases, checks=checks, training=training, lesson=lesson, seed=seed)
    answers = {worker.backend.name: Answers() for worker, _ in workers}
    for worker, own in workers:
        answers_of_worker(exam, worker, own, answers[worker.backend.name])
    return tuple(compare(exam, answers_of_referee(exam), answers, dtype=dtype))


_Side = tuple[str, Answers]
_LATER = 0.0
"""Bound of a row until `compare` knows it."""


def _forward(exam: Exam, first: _Side, second: _Side) -> Iterator[Row]:
    for case, made, truth in zip(exam.cases, first[1].outputs, second[1].outputs, strict=False):
        for name, values in made.items():
            try:
                worst, labels = error(values, truth[name]), label_agreement(values, truth[name])
            except WeightsError as failure:
                raise WeightsError(f"output {name}, input {case}: {failure}") from None
            yield Row("forward", case, name, first[0], second[0], worst, _LATER, labels=labels)


def _gradients(exam: Exam, first: _Side, second: _Side) -> Iterator[Row]:
    for case, made, truth in zip(exam.cases, first[1].gradients, second[1].gradients, strict=False):
        for name, worst in _with_loss(gradient_errors, made, truth).items():
            yield Row("gradients", case, name, first[0], second[0], worst, _LATER)


def _training(exam: Exam, first: _Side, second: _Side) -> Iterator[Row]:
    if exam.lesson is None:
        return
    for step in sorted(first[1].trained.keys() & second[1].trained.keys()):
        made, truth = (side[1].trained[step] for side in (first, second))
        errors = _with_loss(training_errors, made, truth)
        start = exam.weights if exam.other is None else exam.other[1]
        errors[UPDATE] = update_error(made, {name: truth[name] for name in exam.graph.parameters()}, start)
        for name, worst in errors.items():
            yield Row("training", exam.lesson[0], name, first[0], second[0], worst, _LATER, step=step)


_COMPARE: dict[Check, Callable[[Exam, _Side, _Side], Iterator[Row]]] = {
    "forward": _forward,
    "gradients": _gradients,
    "training": _training,
}


def _with_loss(
    errors: Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, float]],
    made: Mapping[str, np.ndarray],
    truth: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """The loss is a number of its own scale; everything else is judged together."""
    ours, theirs = ({name: value for name, value in side.items() if name != LOSS} for side in (made, truth))
    return {LOSS: error(made[LOSS], truth[LOSS]), **errors(ours, theirs)}
