"""How the teacher follows the student under each schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdft_jax.algorithm.teacher import init_teacher, move_teacher, teacher_params
from sdft_jax.config.settings import TeacherConfig

RNG = np.random.default_rng(0)
START = {"embed": 0.02 * RNG.normal(size=(64, 32)), "layers": {"q": 0.02 * RNG.normal(size=(2, 32))}}


def as_params(tree, dtype=jnp.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def follow(config, students):
    """Teachers after each step of a student that starts at START."""
    teacher = init_teacher(as_params(START), config)
    move = jax.jit(lambda t, p, step: move_teacher(t, p, step, config))
    history = []
    for step, student in enumerate(students, start=1):
        teacher = move(teacher, as_params(student), jnp.int32(step))
        history.append(teacher)
    return history


def walk(steps, size):
    """Students that move by `size` in every weight at every step, as Adam's do."""
    student, students = START, []
    for _ in range(steps):
        student = jax.tree.map(lambda x: x + size * RNG.choice([-1, 1], x.shape), student)
        students.append(student)
    return students


def test_ema_equals_a_float64_loop():
    students = walk(100, 1e-3)
    expected = START
    for student in students:
        expected = jax.tree.map(lambda t, s: 0.99 * t + 0.01 * s, expected, student)
    found = follow(TeacherConfig(rate=0.01), students)[-1]
    jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-7), found, expected)


def test_rate_is_the_students_share():
    """Not the teacher's: https://github.com/huggingface/trl/issues/4935."""
    config = TeacherConfig(rate=0.01)
    (moved,) = follow(config, [jax.tree.map(lambda x: x + 1, START)])
    jax.tree.map(lambda m, s: np.testing.assert_allclose(m - s, 0.01, atol=1e-6), moved, as_params(START))


@pytest.mark.parametrize(("rate", "still"), [(0.0, True), (1.0, False)])
def test_extreme_rates(rate, still):
    students = walk(3, 1e-2)
    last = follow(TeacherConfig(rate=rate), students)[-1]
    expected = as_params(START if still else students[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), last, expected)


def test_bfloat16_ema_hardly_moves():
    """The student drifts by 1e-5 a step for 100 steps: a float32 teacher follows, a bfloat16 one stays."""
    drift = jax.tree.map(lambda x: 1e-5 * RNG.choice([-1, 1], x.shape), START)
    start = jax.tree.map(lambda x: np.float32(jnp.bfloat16(x)), START)
    students = [jax.tree.map(lambda x, d, n=n: x + n * d, start, drift) for n in range(1, 101)]

    def motion(dtype):
        config = TeacherConfig(rate=0.01, dtype=dtype)
        teacher = init_teacher(as_params(start), config)
        assert teacher["embed"].dtype == dtype
        for step, student in enumerate(students):
            teacher = move_teacher(teacher, as_params(student), jnp.int32(step + 1), config)
        return np.abs(np.float32(teacher["embed"]) - start["embed"])

    full, half = motion("float32"), motion("bfloat16")
    assert np.mean(full > 0) > 0.99
    assert half.sum() < 0.35 * full.sum()
    assert np.mean(half == 0) > 0.6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_at_its_student_stays(dtype):
    config = TeacherConfig(dtype=dtype)
    student = as_params(START, dtype)
    teacher = init_teacher(student, config)
    moved = move_teacher(teacher, student, jnp.int32(1), config)
    jax.tree.map(np.testing.assert_array_equal, moved, teacher)


def test_frozen_stays():
    last = follow(TeacherConfig(schedule="frozen"), walk(3, 1e-2))[-1]
    jax.tree.map(np.testing.assert_array_equal, last, as_params(START))


def test_periodic_copies_at_its_steps_only():
    students = walk(7, 1e-2)
    history = follow(TeacherConfig(schedule="periodic", every=3), students)
    at = [START, START, *[students[2]] * 3, *[students[5]] * 2]
    for teacher, expected in zip(history, at, strict=True):
        jax.tree.map(np.testing.assert_array_equal, teacher, as_params(expected))


def test_live_is_the_student():
    config = TeacherConfig(schedule="live")
    student = as_params(START)
    assert init_teacher(student, config) == {}
    assert move_teacher({}, student, jnp.int32(1), config) == {}
    assert teacher_params({}, student, config) is student


@pytest.mark.parametrize("schedule", ["ema", "frozen", "periodic"])
def test_the_others_have_weights_of_their_own(schedule):
    config = TeacherConfig(schedule=schedule)
    student = as_params(START)
    teacher = init_teacher(student, config)
    assert teacher_params(teacher, student, config) is teacher
    pointers = [jax.tree.map(lambda x: x.unsafe_buffer_pointer(), tree) for tree in (student, teacher)]
    assert pointers[0]["embed"] != pointers[1]["embed"]  # the student's is donated at every step
