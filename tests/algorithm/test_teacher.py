"""The teacher's weights under each schedule."""

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
    """Return the teacher after each step of a student that starts at START."""
    teacher = init_teacher(as_params(START), config)
    move = jax.jit(lambda t, p, step: move_teacher(t, p, step, config))
    history = []
    for step, student in enumerate(students, start=1):
        teacher = move(teacher, as_params(student), jnp.int32(step))
        history.append(teacher)
    return history


def walk(steps, size):
    """Return a student after each step; every weight moves by `size` per step, as with Adam."""
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
    last = follow(TeacherConfig(rate=0.01), students)[-1]
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-7), last, expected)


def test_rate_is_the_students_share():
    """It is not the teacher's share, as in https://github.com/huggingface/trl/issues/4935."""
    config = TeacherConfig(rate=0.01)
    (moved,) = follow(config, [jax.tree.map(lambda x: x + 1, START)])
    jax.tree.map(lambda m, s: np.testing.assert_allclose(m - s, 0.01, atol=1e-6), moved, as_params(START))


@pytest.mark.parametrize(("rate", "is_initial"), [(0.0, True), (1.0, False)])
def test_rate_0_keeps_the_initial_weights_and_rate_1_copies_the_student(rate, is_initial):
    students = walk(3, 1e-2)
    last = follow(TeacherConfig(rate=rate), students)[-1]
    expected = as_params(START if is_initial else students[-1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), last, expected)


def test_bfloat16_ema_hardly_moves():
    """The student drifts by 1e-5 per step for 100 steps; only a float32 teacher follows it."""
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
def test_a_teacher_equal_to_its_student_does_not_move(dtype):
    config = TeacherConfig(dtype=dtype)
    student = as_params(START, dtype)
    teacher = init_teacher(student, config)
    moved = move_teacher(teacher, student, jnp.int32(1), config)
    jax.tree.map(np.testing.assert_array_equal, moved, teacher)


def test_frozen_teacher_keeps_the_initial_weights():
    last = follow(TeacherConfig(schedule="frozen"), walk(3, 1e-2))[-1]
    jax.tree.map(np.testing.assert_array_equal, last, as_params(START))


def test_periodic_teacher_copies_the_student_every_n_steps():
    students = walk(7, 1e-2)
    history = follow(TeacherConfig(schedule="periodic", every=3), students)
    copies = [START, START, *[students[2]] * 3, *[students[5]] * 2]
    for teacher, expected in zip(history, copies, strict=True):
        jax.tree.map(np.testing.assert_array_equal, teacher, as_params(expected))


def test_live_teacher_is_the_student_without_a_copy():
    config = TeacherConfig(schedule="live")
    student = as_params(START)
    assert init_teacher(student, config) == {}
    assert move_teacher({}, student, jnp.int32(1), config) == {}
    assert teacher_params({}, student, config) is student


@pytest.mark.parametrize("schedule", ["ema", "frozen", "periodic"])
def test_other_schedules_have_a_copy(schedule):
    config = TeacherConfig(schedule=schedule)
    student = as_params(START)
    teacher = init_teacher(student, config)
    assert teacher_params(teacher, student, config) is teacher
    pointers = [jax.tree.map(lambda x: x.unsafe_buffer_pointer(), tree) for tree in (student, teacher)]
    assert pointers[0]["embed"] != pointers[1]["embed"]  # the student's buffers are donated at every step
