"""Kernels are tried on a device before a model uses them, and those that fail are disabled."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

from rfjax.errors import UnsupportedError
from rfjax.ops.dispatch import KernelPolicy
from rfjax.pallas.target import current_target
from rfjax.selfcheck.case import CheckCase, policy_names
from rfjax.selfcheck.checker import CheckResult, run_checks
from rfjax.selfcheck.record import Record

logger = logging.getLogger(__name__)


def kernels_run_here(policy: KernelPolicy) -> bool:
    """Whether a model with this policy would launch kernels on the default device."""
    if policy.implementation == "xla":
        return False
    return current_target() != "interpret" or policy.interpret or policy.implementation == "pallas"


def check_wanted(policy: KernelPolicy, asked: bool | None) -> bool:
    """Whether kernels should be tried before a model with this policy uses them.

    Args:
        policy: the model's.
        asked: what the user wants; None tries where kernels run on a GPU. On a CPU they are
            interpreted, which takes minutes and says little.
    """
    if not kernels_run_here(policy):
        return False
    if asked is None and current_target() == "interpret":
        logger.info(
            "kernels are interpreted here, and not tried before: selfcheck=True does so, slowly"
        )
        return False
    return asked is not False


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
    cases = [case for case in cases if _why_disabled(policy, case) is None]
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

    A kernel that is remembered not to compile or run with a type of weights is not tried with it
    on other cases: they fail. What a process may have died of is tried last and alone.

    Args:
        cases: what is asked.
        record: of results.
        again: try all, whatever is remembered.

    Raises:
        UnsupportedError: a kernel left the device unusable; it is remembered as failed.
        CapacityError: as `run_checks`.
    """
    suspects = _suspects(record)
    remembered = record.read()
    suspects |= {result.key for result in remembered.values() if result.verdict == "died"}
    known = {} if again else remembered
    known |= {case.key: result for case in cases if (result := _untried(case, known))}
    missing = [case for case in cases if case.key not in known]
    together = [case for case in missing if case.key not in suspects]
    alone = [case for case in missing if case.key in suspects]
    for batch in [together, *([case] for case in alone)]:
        found: list[CheckResult] = []
        for result in run_checks(batch, watch=record.under_way):
            record.add([result])  # at once: the next one may take the process with it
            found.append(result)
        if len(found) < len(batch):
            raise UnsupportedError(
                f"the device stopped working in the self-check of {found[-1].kernel} "
                f"({found[-1].label}): {found[-1].reason}. "
                "Start again: it will not be used"
            )
        known |= {result.key: result for result in found}
    return tuple(known[case.key] for case in cases)


def _suspects(record: Record) -> set[str]:
    """Keys of cases one of which an earlier process died of.

    Where it was trying a single one, that is remembered as what it died of.
    """
    suspects: set[str] = set()
    for results in record.unfinished():
        if len(results) == 1:
            record.add(results)
        else:
            names = "; ".join(result.key for result in results)
            logger.warning("an earlier self-check died compiling one of these: %s", names)
            suspects |= {result.key for result in results}
    return suspects


def _untried(case: CheckCase, known: Mapping[str, CheckResult]) -> CheckResult | None:
    """The failure of a case whose kernel did not compile or run for another, or None.

    Such a kernel is left alone: it may have taken the device with it.
    """
    broken = [result for result in known.values() if result.verdict in ("failed", "died")]
    reason = _why_disabled(KernelPolicy(disabled=tuple(failing(broken).items())), case)
    if reason is None or case.key in known:
        return None
    return CheckResult(case.kernel, case.label, case.limit, "failed", None, f"not tried: {reason}")


def _why_disabled(policy: KernelPolicy, case: CheckCase) -> str | None:
    reasons = (policy.why_disabled(name) for name in policy_names(case.kernel))
    return next((reason for reason in reasons if reason is not None), None)


def failing(results: Iterable[CheckResult]) -> dict[str, str]:
    """Kernels that must not be used, each with the reason of its first failure.

    A launch with weights of several types speaks against all of them, unless one of them fails by
    itself: without that one there is no such launch.
    """
    found: dict[str, str] = {}
    failed = [result for result in results if not result.usable]
    for result in sorted(failed, key=lambda result: len(policy_names(result.kernel))):
        names = policy_names(result.kernel)
        if len(names) == 1 or found.keys().isdisjoint(names):
            for name in names:
                found.setdefault(name, f"{result.label}: {result.reason}")
    return found
