"""What each operation is meant to reach on an H200, set before any of it was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ddx.bench.case import Mode

MUCH_DATA = 150e6  # bytes; a call that moves less is bound by its launch


@dataclass(frozen=True, kw_only=True)
class Target:
    """Times as fast as eager and as `torch.compile`, shares of the roofline, time over a stock forward pass."""

    eager: float | None = None
    compile: float | None = None
    roofline: float | None = None
    roofline_of_little_data: float | None = None
    of_forward: float | None = None  # at most
    launches: int | None = None  # at most
    both_passes: bool = False  # what is judged of a backward case is the forward pass and the backward pass

    def missed(
        self,
        *,
        eager: float | None,
        compile: float | None,
        roofline: float | None,
        of_forward: float | None,
        launches: int | None,
        moved_bytes: float,
    ) -> list[str]:
        """Return what was not reached, in words; a number that was not measured is not judged."""
        share = self.roofline
        if moved_bytes < MUCH_DATA and self.roofline_of_little_data is not None:
            share = self.roofline_of_little_data
        found = []
        for name, reached, least in (("eager", eager, self.eager), ("compile", compile, self.compile)):
            if reached is not None and least is not None and reached < least:
                found.append(f"{name} {reached:.2f}× of {least:g}×")
        if roofline is not None and share is not None and roofline < share:
            found.append(f"roofline {100 * roofline:.0f}% of {100 * share:.0f}%")
        if of_forward is not None and self.of_forward is not None and of_forward > self.of_forward:
            found.append(f"{of_forward:.2f} forward passes, not {self.of_forward:g}")
        if launches is not None and self.launches is not None and launches > self.launches:
            found.append(f"{launches} launches, not {self.launches}")
        return found


def _all_modes(operation: str, target: Target) -> dict[tuple[str, Mode], Target]:
    return {(operation, "forward"): target, (operation, "backward"): target, (operation, "dual"): target}


_LINEAR_ATTENTION = Target(roofline=0.75, roofline_of_little_data=0.5)
_NORM = Target(eager=2.5, compile=0.95, roofline=0.8)
_PART_OF_A_NORM = Target(compile=0.95, roofline=0.8)
_LOSS = Target(eager=5, launches=3, both_passes=True)  # their gradients are made in the forward pass

TARGETS: dict[tuple[str, Mode], Target] = {
    ("dual_linear", "dual"): Target(eager=1.4, of_forward=2.1),
    ("relu_linear_attention", "forward"): replace(_LINEAR_ATTENTION, eager=8, compile=4),
    ("relu_linear_attention", "backward"): _LINEAR_ATTENTION,
    ("relu_linear_attention", "dual"): replace(_LINEAR_ATTENTION, eager=10),
    ("glumbconv_mid", "forward"): Target(eager=3, compile=3, roofline=0.75),
    ("glumbconv_mid", "backward"): Target(eager=2),
    ("cross_attention_dual", "dual"): Target(eager=10, of_forward=2.5),
    **_all_modes("gated_residual_norm_modulate", _NORM),
    **_all_modes("norm_modulate", _PART_OF_A_NORM),
    **_all_modes("gated_residual", _PART_OF_A_NORM),
    **_all_modes("residual_norm_modulate", _PART_OF_A_NORM),
    **_all_modes("rms_norm", _NORM),
    **_all_modes("sid", _LOSS),
    **_all_modes("dmd", _LOSS),
    **_all_modes("scm_tangent", _LOSS),
    **_all_modes("consistency", _LOSS),
}


def target_of(operation: str, mode: Mode) -> Target | None:
    """Return the target of an operation, whose name may say more behind that in the table; None without one."""
    fitting = [name for name, of_mode in TARGETS if of_mode == mode and operation.startswith(name)]
    return TARGETS[max(fitting, key=len), mode] if fitting else None
