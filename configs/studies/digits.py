"""What each part of the method contributes, on digits: a study in minutes.

    python launch.py --job=study --study=configs/studies/digits.py

Cost: about a quarter of an hour on 2 CPU cores, for 19 runs.
Expected: most rows within a few points of the teacher; the 500 test images, 0.2 points
each, are too few to rank them.
"""

from alite_jax.study.ablation_rows import method_rows
from alite_jax.study.declaration import Study


def get_study() -> Study:
    """Returns the study."""
    return Study(
        name="digits",
        title="Digits: the parts of the method",
        description=(
            "Scikit-learn's 8x8 digits, networks 16 channels wide, 6 epochs of the"
            " teacher and 10 of each student: a look at everything at once and no"
            " evidence, since one of the 500 test images is 0.2 points."
        ),
        config="digits",
        overrides={
            "teacher.epochs": 6,
            "student.epochs": 10,
            "logging.tensorboard": False,
        },
        rows=method_rows(
            {
                "student.epochs": 5,
                "student.optimizer.learning_rate": 0.025,
                "student.optimizer.warmup_epochs": 0.5,
            }
        ),
    )
