"""The joint loss against the same formulas in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax.distillation import distillation_loss, joint_loss, task_loss

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(5, 7)) * 3
TEACHER = RNG.normal(size=(5, 7)) * 3
LABELS = RNG.integers(0, 7, 5)


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, labels, smoothing=0.0):
    classes = logits.shape[-1]
    targets = np.full(logits.shape, smoothing / classes)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return -(targets * log_softmax(logits)).sum(axis=-1).mean()


def divergence(logits, teacher_logits, temperature):
    student = log_softmax(logits / temperature)
    teacher = log_softmax(teacher_logits / temperature)
    each = (np.exp(teacher) * (teacher - student)).sum(axis=-1)
    return temperature**2 * each.mean()


def to_float32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def test_two_classes_by_hand():
    # Teacher (3/4, 1/4), student (1/2, 1/2), T = 1:
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2); cross-entropy ln 2; smoothing leaves ln 2.
    teacher = jnp.array([[np.log(3.0), 0.0]], jnp.float32)
    losses = joint_loss(
        jnp.zeros((1, 2)), jnp.array([1]), teacher, alpha=0.25, temperature=1.0
    )
    np.testing.assert_allclose(losses.distillation_loss, 0.1308121, rtol=1e-5)
    np.testing.assert_allclose(losses.task_loss, 0.6931472, rtol=1e-6)
    np.testing.assert_allclose(losses.loss, 0.75 * 0.6931472 + 0.25 * 0.1308121, 1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_the_formula(alpha, temperature, smoothing):
    losses = joint_loss(
        *to_float32(STUDENT),
        LABELS,
        *to_float32(TEACHER),
        alpha=alpha,
        temperature=temperature,
        label_smoothing=smoothing,
    )
    task = cross_entropy(STUDENT, LABELS, smoothing)
    distillation = divergence(STUDENT, TEACHER, temperature)
    expected = ((1 - alpha) * task + alpha * distillation, task, distillation)
    for name, found, wanted in zip(losses._fields, losses, expected, strict=True):
        assert found.shape == () and found.dtype == jnp.float32, name
        np.testing.assert_allclose(found, wanted, rtol=2e-5, err_msg=name)


def test_the_limits_of_alpha_leave_one_term():
    def losses(alpha):
        return joint_loss(
            *to_float32(STUDENT),
            LABELS,
            *to_float32(TEACHER),
            alpha=alpha,
            temperature=4.0,
        )

    assert losses(0.0).loss == losses(0.0).task_loss
    assert losses(1.0).loss == losses(1.0).distillation_loss
    assert losses(0.0).task_loss == losses(1.0).task_loss


def test_without_a_teacher_the_labels_decide_alone():
    losses = joint_loss(*to_float32(STUDENT), LABELS, None, alpha=0.9, temperature=4.0)
    np.testing.assert_allclose(losses.loss, cross_entropy(STUDENT, LABELS), rtol=1e-5)
    assert losses.loss == losses.task_loss
    assert losses.distillation_loss == 0


def test_label_smoothing_of_confident_logits_by_hand():
    # Log-probabilities are (0, -20, -20, -20) nearly; 3/4 of 0.1 lies on the latter.
    logits = jnp.array([[20.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(task_loss(logits, jnp.array([0]), 0.1), 1.5, rtol=1e-5)
    np.testing.assert_allclose(task_loss(logits, jnp.array([0])), 0.0, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equal_logits_up_to_a_constant_have_no_divergence(temperature):
    (logits,) = to_float32(STUDENT)
    loss, gradient = jax.value_and_grad(distillation_loss)(
        logits, logits + 5.0, temperature
    )
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_divergence_is_taken_from_the_teacher_to_the_student():
    forward = float(distillation_loss(*to_float32(STUDENT, TEACHER), 1.0))
    backward = float(distillation_loss(*to_float32(TEACHER, STUDENT), 1.0))
    np.testing.assert_allclose(forward, divergence(STUDENT, TEACHER, 1.0), rtol=1e-5)
    assert abs(forward - backward) > 0.1


def test_gradient_is_temperature_times_the_difference_of_probabilities():
    temperature = 3.0
    gradient = jax.grad(distillation_loss)(*to_float32(STUDENT, TEACHER), temperature)
    student, teacher = (
        np.exp(log_softmax(x / temperature)) for x in (STUDENT, TEACHER)
    )
    expected = temperature * (student - teacher) / len(STUDENT)
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_size_of_the_gradient_does_not_vanish_with_temperature():
    # At high temperature it tends to (centred z_s - centred z_t) / classes.
    centred = [x - x.mean(axis=-1, keepdims=True) for x in (STUDENT, TEACHER)]
    limit = (centred[0] - centred[1]) / STUDENT.shape[1] / len(STUDENT)
    for temperature in (400.0, 1000.0):
        gradient = jax.grad(distillation_loss)(
            *to_float32(STUDENT, TEACHER), temperature
        )
        np.testing.assert_allclose(gradient, limit, atol=2e-3)


def test_no_gradient_reaches_the_teacher():
    def loss(logits, teacher_logits):
        return joint_loss(
            logits, LABELS, teacher_logits, alpha=0.9, temperature=4.0
        ).loss

    student, teacher = jax.grad(loss, argnums=(0, 1))(*to_float32(STUDENT, TEACHER))
    assert np.abs(student).max() > 1e-3
    np.testing.assert_array_equal(teacher, 0.0)


def test_huge_logits_stay_finite():
    logits, teacher = to_float32(1e4 * STUDENT, -1e4 * TEACHER)

    def loss(logits):
        return joint_loss(logits, LABELS, teacher, alpha=0.5, temperature=4.0).loss

    value, gradient = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
