"""A submission's way into an installation. Apart from that, which whoever only looks needs too."""

from __future__ import annotations

from jobs.output.plan import Plan
from producer.control.installation import Installation
from producer.planning.listener import Listener
from producer.planning.submission import Submission, prepare


def enter(
    known: Installation,
    submission: Submission,
    listener: Listener | None = None,
    keep_report: bool = False,
) -> Plan:
    """Plan a submission for an installation's workers and let it in; one that had finished, it was.

    listener, keep_report: as of prepare.

    Raises: as Installation.check_free, prepare and Installation.admit.
    """
    known.check_free(submission.storage, submission.run_id)
    plan = prepare(submission, known.workers(), listener, keep_report)
    if submission.finished is None:
        known.admit(plan)
    return plan
