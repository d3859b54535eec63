"""What operators are made for, by which they choose their form."""

import jax


def platform() -> str:
    """What a program is made for: as of `jax.default_device`, else the backend's."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return str(getattr(device, "platform", device))  # A device, or the platform itself.
