"""What a network is trained for, and how that changes in the course of a training."""

from dataclasses import dataclass

import jax

from alite_jax.schedules import interpolate

# What every training step measures.
METRICS = ("loss", "task_loss", "distillation_loss", "accuracy", "gradient_norm")


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    Attributes:
        alpha: weight of the distillation; 0 throughout needs no teacher.
        temperature: of the distillation.
        label_smoothing: of the cross-entropy.
        loss: form of the distillation; see `joint_loss`, as for the next two.
        alpha_dkd: weight of the target class in the form `"dkd"`.
        beta_dkd: weight of the other classes in the form `"dkd"`.
        feature_weight: twice the weight of `feature_loss`; 0 leaves it out.
        alpha_end: alpha at the end of the training; negative: stays as it is.
        temperature_end: the same for the temperature; 0: stays as it is.
        schedule: how both go to their ends: a key of `alite_jax.schedules.SCHEDULES`.
    """

    alpha: float = 0.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    loss: str = "kd"
    alpha_dkd: float = 1.0
    beta_dkd: float = 8.0
    feature_weight: float = 0.0
    alpha_end: float = -1.0
    temperature_end: float = 0.0
    schedule: str = "constant"

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a training step measures."""
        return METRICS + (("feature_loss",) if self.feature_weight > 0 else ())

    @property
    def needs_logits(self) -> bool:
        """Whether the teacher's logits ever have a part in the loss."""
        later = self.schedule != "constant" and self.alpha_end > 0
        return self.alpha > 0 or later

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher ever has any part in the loss."""
        return self.needs_logits or self.feature_weight > 0

    def weights(
        self, step: jax.Array, total_steps: int
    ) -> tuple[jax.Array | float, jax.Array | float]:
        """Alpha and the temperature at a step, traced only where they change."""

        def at_step(start: float, end: float, changes: bool) -> jax.Array | float:
            if self.schedule == "constant" or not changes or start == end:
                return start
            if total_steps < 1:
                raise ValueError(f"a {self.schedule} schedule needs total_steps")
            return interpolate(step / total_steps, start, end, self.schedule)

        return (
            at_step(self.alpha, self.alpha_end, self.alpha_end >= 0),
            at_step(self.temperature, self.temperature_end, self.temperature_end > 0),
        )
