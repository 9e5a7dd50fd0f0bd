"""Kernels are tried on a device before a model uses them, and those that fail are disabled."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import KernelPolicy
from rfjax.pallas.target import current_target
from rfjax.selfcheck.case import CheckCase
from rfjax.selfcheck.checker import CheckResult, run_checks
from rfjax.selfcheck.record import Record

logger = logging.getLogger(__name__)


def kernels_run_here(policy: KernelPolicy) -> bool:
    """Whether a model with this policy would launch kernels on the default device."""
    if policy.implementation == "xla":
        return False
    return current_target() != "interpret" or policy.interpret or policy.implementation == "pallas"


def guarded(
    policy: KernelPolicy, cases: Sequence[CheckCase], record: Record | None = None
) -> KernelPolicy:
    """The policy, less the kernels that fail on the default device.

    Cases whose results are remembered are not tried again. Where the policy runs no kernels here,
    nothing is tried.

    Args:
        policy: what a model would use.
        cases: what it would meet.
        record: of results; None takes the user's.

    Raises:
        UnsupportedError, CapacityError: as `checked`.
    """
    cases = [case for case in cases if policy.why_disabled(case.kernel) is None]
    if not cases or not kernels_run_here(policy):
        return policy
    results = checked(cases, Record() if record is None else record)
    disabled = tuple(failing(results).items())
    for kernel, reason in disabled:
        logger.warning(
            "KERNEL DISABLED: %s fails its self-check on this device: %s. Plain JAX takes its "
            "place, which is right and slower. `rfjax selfcheck` shows more; please report it",
            kernel,
            reason,
        )
    return dataclasses.replace(policy, disabled=policy.disabled + disabled)


def remembered_policy(record: Record | None = None) -> KernelPolicy:
    """The default policy, less the kernels of which a failure is remembered. Tries nothing."""
    results = (Record() if record is None else record).read()
    return KernelPolicy(disabled=tuple(failing(results.values()).items()))


def checked(
    cases: Sequence[CheckCase], record: Record, *, again: bool = False
) -> tuple[CheckResult, ...]:
    """A result for every case: the remembered one, or else tried now and remembered.

    A kernel that is remembered not to compile or run is not tried on other cases: they fail.

    Args:
        cases: what is asked.
        record: of results.
        again: try all, whatever is remembered.

    Raises:
        UnsupportedError: a kernel left the device unusable; it is remembered as failed.
        CapacityError: as `run_checks`.
    """
    left = record.unfinished()
    if left:
        record.add(left)
    known = {} if again else record.read()
    known |= {case.key: result for case in cases if (result := _untried(case, known))}
    missing = [case for case in cases if case.key not in known]
    if missing:
        with record.under_way(missing):
            found = run_checks(missing)
        record.add(found)
        if len(found) < len(missing):
            raise UnsupportedError(
                f"the device stopped working in the self-check of {found[-1].kernel} "
                f"({found[-1].label}): {found[-1].reason}. "
                "Start again: it will not be used"
            )
        known |= {result.key: result for result in found}
    return tuple(known[case.key] for case in cases)


def _untried(case: CheckCase, known: Mapping[str, CheckResult]) -> CheckResult | None:
    """The failure of a case whose kernel did not compile or run for another, or None.

    Such a kernel is left alone: it may have taken the device with it.
    """
    broken = [result for result in known.values() if result.verdict == "failed"]
    policy = KernelPolicy(disabled=tuple(failing(broken).items()))
    reason = policy.why_disabled(case.kernel)
    if reason is None or case.key in known:
        return None
    return CheckResult(case.kernel, case.label, case.limit, "failed", None, f"not tried: {reason}")


def failing(results: Iterable[CheckResult]) -> dict[str, str]:
    """Kernels that must not be used, each with the reason of its first failure."""
    found: dict[str, str] = {}
    for result in results:
        if not result.usable:
            found.setdefault(result.kernel, f"{result.label}: {result.reason}")
    return found
