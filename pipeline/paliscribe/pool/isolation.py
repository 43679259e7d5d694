"""Isolation of requests that no replica survives: they crash its process, hang it, or exhaust its memory.

A call that was lost with its replica may be innocent: a spot node left, or a request of another call was the cause. So
it is repeated in pieces, by a replica that answers no other call of a run then. If that replica is lost too, the
piece that it worked on is the suspect: it is repeated in smaller pieces, and the others as they were. A request with
which replicas are lost while it is alone is given up. One such request in n costs about log8(n) + 2 replicas.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence

from paliscribe.errors import ReplicaError, RunError
from paliscribe.records import Prediction, Request

PIECES = 8  # into which a suspect piece is divided: fewer cost more replicas, more cost the speed of a group
PROOFS = 2  # replicas lost with a request alone, after which it is given up: one may have been lost by chance
MOST_LOSSES = 64  # replicas that one call may be the end of: enough to isolate a dozen requests
MOST_REFUSALS = 100  # lost attempts in a row that no replica had begun
PAUSES = (0.1, 5.0)  # seconds before another attempt, the first and the longest; time for a replacement to start

Apart = Callable[[list[Request], int], AsyncIterator[list[Prediction]]]
log = logging.getLogger(__name__)


async def isolate(requests: Sequence[Request], apart: Apart) -> list[Prediction]:
    """Answer the requests of a lost call, in order; those that replicas do not survive with error `replica_lost`.

    `apart`: as `Replica.predict_apart`; raises ReplicaError if the replica is lost. Raises RunError if no replica
    begins to work on the call.
    """
    answers: dict[int, Prediction] = {}
    alone: Counter[int] = Counter()  # replicas lost with this request alone, by place
    waiting = deque([list(range(len(requests)))])
    losses, refusals = 1, 0

    def give_up(places: Sequence[int], words: str) -> None:
        log.warning("replica_lost: %d of %d requests of a call: %s", len(places), len(requests), words)
        for place in places:
            answers[place] = Prediction(requests[place].id, "", (), (), None, "replica_lost", words)

    while waiting:
        if losses >= MOST_LOSSES:
            left = [place for group in waiting for place in group]
            give_up(left, f"{losses} replicas were lost with its call, and it was not tried alone any more")
            break
        places = waiting.popleft()
        size = -(-len(places) // PIECES)
        begun, done = False, 0
        try:
            async for found in apart([requests[place] for place in places], size):
                answers.update(zip(places[done : done + len(found)], found, strict=True))
                begun, done = True, done + len(found)
            refusals = 0
            continue
        except ReplicaError as error:
            reason = str(error)
        if not begun:
            refusals += 1
            if refusals >= MOST_REFUSALS:
                raise RunError(f"{refusals} replicas in a row were lost before they began a call; the last: {reason}")
            waiting.appendleft(places)
            await asyncio.sleep(min(PAUSES[0] * 2**refusals, PAUSES[1]))
            continue
        losses, refusals = losses + 1, 0
        suspect, others = places[done : done + size], places[done + size :]
        if len(suspect) == 1:
            alone[suspect[0]] += 1
            if alone[suspect[0]] >= PROOFS:
                give_up(suspect, f"{PROOFS} replicas were lost with this request alone in them; the last: {reason}")
                suspect = []
        waiting.extend(group for group in (suspect, others) if group)
        await asyncio.sleep(PAUSES[0])
    return [answers[place] for place in range(len(requests))]
