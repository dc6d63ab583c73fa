"""What a check finds, for a dump: each finding with its place, so that nodes can show what is wrong with them.

The check is the one of `references/image_check.py`: what that counts is here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qcow2c.errors import Qcow2Error, StoreError
from qcow2c.forensic.nodes import Node
from qcow2c.format.findings import Finding, Severity
from qcow2c.references.check_result import CheckResult
from qcow2c.references.image_check import check_image
from qcow2c.storage.store import Progress, Store


class Checked:
    """The findings of a check of one image. `unlisted` is how many there are besides.

    `is_whole` is false where the check gave up: then it has seen only a part, and `findings` say why.
    """

    def __init__(self, store: Store, cluster_size: int, progress: Progress | None = None) -> None:
        """Check an image whose header was loaded. Raises StoreError."""
        self.findings: list[Finding] = []
        self.is_whole = False
        self.unlisted = 0
        try:
            result = check_image(store, progress)
        except StoreError:
            raise
        except Qcow2Error as exc:
            self.findings.append(Finding("check.failed", Severity.ERROR, exc.message, exc.where, exc.spec))
            return
        self.findings += result.findings(cluster_size)
        self.findings += _not_checked(result)
        self.is_whole = result.failed is None
        self.unlisted = result.message_count - len([*result.messages])

    def of(self, node: Node) -> Node:
        """Return a node with the findings whose place it has a part of."""
        span = node.span
        if span is None:
            return node
        mine = tuple(
            finding
            for finding in self.findings
            if finding.where is not None and finding.where.offset < span.end and span.offset < finding.where.end
        )
        known = {(finding.rule, finding.where) for finding in node.findings}
        return replace(node, findings=node.findings + tuple(new for new in mine if (new.rule, new.where) not in known))

    def along(self, nodes: Iterator[Node]) -> Iterator[Node]:
        """Yield nodes, and what is below them, with their findings."""
        for node in nodes:
            found, inner = self.of(node), node.make_children
            if inner is not None:
                found = replace(found, make_children=lambda inner=inner: self.along(iter(inner())))  # type: ignore[misc]
            yield found


def _not_checked(result: CheckResult) -> Iterator[Finding]:
    if result.failed is not None:
        yield Finding("check.failed", Severity.ERROR, result.failed)
    elif result.check_errors:
        message = f"the refcounts of {result.check_errors} clusters cannot be read"
        yield Finding("check.unreadable", Severity.ERROR, message)
