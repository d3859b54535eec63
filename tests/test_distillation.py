"""The joint loss against the same formulas in NumPy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alite_jax import distillation
from alite_jax.errors import ConfigError

joint_loss = jax.jit(distillation.joint_loss, static_argnames="loss")
task_loss = jax.jit(distillation.task_loss)
distillation_loss = jax.jit(distillation.distillation_loss)
decoupled_loss = jax.jit(distillation.decoupled_loss)
feature_loss = jax.jit(distillation.feature_loss)

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
    return [np.float32(x) for x in arrays]


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
    soft = divergence(STUDENT, TEACHER, temperature)
    expected = ((1 - alpha) * task + alpha * soft, task, soft)
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
    loss, gradient = jax.jit(jax.value_and_grad(distillation_loss))(
        logits, logits + 5, temperature
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
    gradient = jax.jit(jax.grad(distillation_loss))(
        *to_float32(STUDENT, TEACHER), temperature
    )
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
        gradient = jax.jit(jax.grad(distillation_loss))(
            *to_float32(STUDENT, TEACHER), temperature
        )
        np.testing.assert_allclose(gradient, limit, atol=2e-3)


def test_no_gradient_reaches_the_teacher():
    def loss(logits, teacher_logits):
        return joint_loss(
            logits, LABELS, teacher_logits, alpha=0.9, temperature=4.0
        ).loss

    student, teacher = jax.jit(jax.grad(loss, argnums=(0, 1)))(
        *to_float32(STUDENT, TEACHER)
    )
    assert np.abs(student).max() > 1e-3
    np.testing.assert_array_equal(teacher, 0.0)


def test_huge_logits_stay_finite():
    logits, teacher = to_float32(1e4 * STUDENT, -1e4 * TEACHER)

    def loss(logits):
        return joint_loss(logits, LABELS, teacher, alpha=0.5, temperature=4.0).loss

    value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def decoupled(logits, teacher_logits, labels, temperature):
    """TCKD and NCKD of each example, from the probabilities themselves."""
    both = []
    for logit, teacher_logit, label in zip(logits, teacher_logits, labels, strict=True):
        student, teacher = (
            np.exp(log_softmax(x / temperature)) for x in (logit, teacher_logit)
        )
        others = np.arange(len(student)) != label
        pairs = [np.array([p[label], p[others].sum()]) for p in (student, teacher)]
        rests = [p[others] / p[others].sum() for p in (student, teacher)]
        both.append([np.sum(t * np.log(t / s)) for s, t in (pairs, rests)])
    return np.transpose(both)


def test_decoupled_by_hand():
    # Teacher (1/2, 1/4, 1/4) and student (1/4, 1/2, 1/4) with label 0: TCKD is the
    # KL of (1/2, 1/2) and (1/4, 3/4), NCKD that of (1/2, 1/2) and (2/3, 1/3).
    teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    student = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
    label = jnp.array([0])
    target = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    others = 0.5 * np.log(3 / 4) + 0.5 * np.log(3 / 2)
    for alpha, beta in ((1, 0), (0, 1), (2, 5)):
        loss = decoupled_loss(student, teacher, label, 1.0, alpha, beta)
        np.testing.assert_allclose(loss, alpha * target + beta * others, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha_dkd, beta_dkd", [(1.0, 8.0), (0.0, 1.0), (3.0, 0.5)])
def test_decoupled_equals_the_formula(temperature, alpha_dkd, beta_dkd):
    losses = joint_loss(
        *to_float32(STUDENT),
        LABELS,
        *to_float32(TEACHER),
        alpha=0.3,
        temperature=temperature,
        loss="dkd",
        alpha_dkd=alpha_dkd,
        beta_dkd=beta_dkd,
    )
    target, others = decoupled(STUDENT, TEACHER, LABELS, temperature)
    wanted = temperature**2 * np.mean(alpha_dkd * target + beta_dkd * others)
    np.testing.assert_allclose(losses.distillation_loss, wanted, rtol=3e-5)
    task = cross_entropy(STUDENT, LABELS)
    np.testing.assert_allclose(losses.loss, 0.7 * task + 0.3 * wanted, rtol=3e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_plain_distillation_couples_the_two_parts(temperature):
    """KL = TCKD + (the teacher's probability of the other classes) * NCKD."""
    coupled = jax.jit(jax.value_and_grad(distillation_loss))
    both = jax.jit(jax.value_and_grad(decoupled_loss))
    for n in range(len(LABELS)):
        logits, teacher = to_float32(STUDENT[n : n + 1], TEACHER[n : n + 1])
        label = LABELS[n : n + 1]
        others = 1 - np.exp(log_softmax(teacher[0] / temperature))[label[0]]
        value, gradient = both(logits, teacher, label, temperature, 1.0, others)
        wanted, wanted_gradient = coupled(logits, teacher, temperature)
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [400.0, 1000.0])
def test_size_of_the_decoupled_gradient_does_not_vanish_either(temperature):
    """Of NCKD, it tends to the difference of the centred logits of other classes."""
    gradient = jax.jit(jax.grad(decoupled_loss))(
        *to_float32(STUDENT, TEACHER), LABELS, temperature, 0.0, 1.0
    )
    others = np.arange(STUDENT.shape[1]) != LABELS[:, None]
    mean = (STUDENT - TEACHER).mean(axis=1, where=others, keepdims=True)
    limit = np.where(others, STUDENT - TEACHER - mean, 0) / others.sum(axis=1)[0]
    np.testing.assert_allclose(gradient, limit / len(LABELS), atol=2e-3)


def test_decoupled_teaches_no_teacher_and_huge_logits_stay_finite():
    run = jax.jit(jax.value_and_grad(decoupled_loss, argnums=(0, 1)))
    for scale in (1.0, 1e4):
        logits, teacher = to_float32(scale * STUDENT, -scale * TEACHER)
        value, (student, nothing) = run(logits, teacher, LABELS, 4.0, 1.0, 8.0)
        assert np.isfinite(value) and np.isfinite(student).all()
        assert np.abs(student).max() > 1e-3
        np.testing.assert_array_equal(nothing, 0.0)


def test_an_unknown_loss_is_an_error():
    with pytest.raises(ConfigError, match="distillation.loss is 'dk'; did you mean"):
        joint_loss(
            *to_float32(STUDENT), LABELS, None, alpha=0.0, temperature=1.0, loss="dk"
        )


def maps(seed, channels):
    """Outputs of two stages for three images."""
    rng = np.random.default_rng(seed)
    return [
        np.maximum(rng.normal(size=(3, side, side, channels)), 0) for side in (4, 2)
    ]


def test_attention_maps_by_hand():
    # Energies (3, 4) and (4, 3) have the directions (.6, .8) and (.8, .6); channels
    # add up, and a layer of equal directions adds nothing.
    ours = jnp.sqrt(jnp.array([[[[1.0, 2.0], [2.0, 2.0]]]]))
    theirs = jnp.sqrt(jnp.array([[[[8.0], [6.0]]]]))
    same = jnp.array([[[[1.0], [2.0]]]])
    loss = feature_loss([ours, same], [theirs, 5 * same])
    np.testing.assert_allclose(loss, np.sqrt(0.08), rtol=1e-5)


def test_feature_loss_equals_the_formula_with_other_widths_and_scales():
    ours, theirs = maps(0, 5), maps(1, 7)
    wanted = np.zeros(3)
    for one, other in zip(ours, theirs, strict=True):
        q, r = ((x**2).sum(axis=-1).reshape(3, -1) for x in (one, other))
        q, r = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, r))
        wanted += np.linalg.norm(q - r, axis=1)
    loss = feature_loss(to_float32(*ours), to_float32(*theirs))
    assert loss.shape == () and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-5)
    scaled = feature_loss(
        [x.astype(jnp.bfloat16) for x in to_float32(*(30 * x for x in ours))],
        to_float32(*theirs),
    )
    assert scaled.dtype == jnp.float32
    np.testing.assert_allclose(scaled, loss, rtol=1e-2)


def test_gradients_of_features_reach_the_student_alone():
    (ours, theirs) = (to_float32(*maps(seed, 5)) for seed in (0, 1))
    student, teacher = jax.jit(jax.grad(feature_loss, argnums=(0, 1)))(ours, theirs)
    for leaf, activations in zip(student, ours, strict=True):
        assert np.abs(leaf).max() > 1e-3
        # Along the activations nothing changes: only the direction of a map counts.
        along = np.sum(leaf * activations, axis=(1, 2, 3))
        np.testing.assert_allclose(along, 0, atol=1e-6)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), teacher)


def test_equal_and_dead_features_have_finite_gradients():
    ours = to_float32(*maps(0, 5))
    dead = [np.zeros_like(x) for x in ours]
    run = jax.jit(jax.value_and_grad(feature_loss))
    for student, teacher, wanted in (
        (ours, ours, 0.0),
        (dead, dead, 0.0),
        (dead, ours, 2.0),
    ):
        loss, gradient = run(student, teacher)
        np.testing.assert_allclose(loss, wanted, atol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in gradient)
