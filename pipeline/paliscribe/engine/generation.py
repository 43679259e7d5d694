"""One request on its way through the engine: what is known of its answer so far. Host memory only."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

from paliscribe.engine.sampling import Draw
from paliscribe.records import FinishReason, Piece, Prediction, Request

OnPiece = Callable[[Piece], None]
Detokenize = Callable[[Sequence[int]], str]
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a character looks like while some of its bytes are still to come


class Generation:
    """A request, its slot, and its answer as it grows."""

    def __init__(
        self, ticket: int, request: Request, prompt: Sequence[int], detokenize: Detokenize, on_piece: OnPiece | None
    ) -> None:
        self.ticket, self.request, self.prompt = ticket, request, prompt
        self.future: Future[Prediction] = Future()
        self.finish: FinishReason | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.submitted = time.monotonic()
        self.first_token: float | None = None  # seconds that it took to come
        self.prompt_tokens = len(prompt)  # the image's too, once the engine has counted them
        self.row: int | None = None  # its slot
        self.held = 0  # tokens in the slot
        self.launched = 0  # tokens that the device has been told to choose
        self.attempt = 0  # counts restarts: what an earlier attempt chose is not read any more
        self._detokenize, self._on_piece = detokenize, on_piece
        self._watched = on_piece is not None or bool(request.stop)
        self._text = ""  # kept up only while somebody watches
        self._sent, self._sent_tokens = 0, 0  # characters and tokens given to the callback

    def draw(self) -> Draw | None:
        """How the next token is to be drawn; None for greedily. The same however often it is asked for."""
        if self.request.temperature <= 0:
            return None
        return Draw(self.request.temperature, self.request.top_p, _uniform(self.request.seed, self.launched))

    def book(self, token: int, logprob: float, end_tokens: frozenset[int]) -> None:
        """Take note of a token; sets `finish` if it was the last. Calls the callback if text has become certain."""
        self.logprobs.append(logprob)
        if self.first_token is None:
            self.first_token = time.monotonic() - self.submitted
        if token in end_tokens:
            self.finish = "stop"
        else:
            self.tokens.append(token)
            if len(self.tokens) >= self.request.max_tokens:
                self.finish = "length"
        if self._watched:
            self._watch()

    def restart(self) -> None:
        """Forget the answer; it will be the same again, so what the callback was given stays true."""
        self.attempt += 1
        self.row, self.held, self.launched = None, 0, 0
        self.tokens, self.logprobs, self._text = [], [], ""

    def answer(self) -> None:
        """Resolve the future with the finished answer."""
        text = self._text if self._watched else self._detokenize(self.tokens)
        ends = self._ends(text) if "<loc" in text or self.request.spelled else ()
        self._resolve(
            Prediction(
                id=self.request.id,
                text=text,
                tokens=tuple(self.tokens),
                logprobs=tuple(self.logprobs),
                finish_reason=self.finish,
                ends=ends,
                prompt_tokens=self.prompt_tokens,
                first_token=self.first_token,
                seconds=time.monotonic() - self.submitted,
            )
        )

    def refuse(self, kind: str, message: str) -> None:
        """Resolve the future with an error of this request's own."""
        self._resolve(Prediction(self.request.id, "", (), (), None, kind, message))

    def fail(self, error: Exception) -> None:
        """End the future with an error that is not the request's."""
        with contextlib.suppress(InvalidStateError):  # cancelled in this very moment
            self.future.set_exception(error)

    def _resolve(self, prediction: Prediction) -> None:
        with contextlib.suppress(InvalidStateError):  # as above
            self.future.set_result(prediction)

    def _watch(self) -> None:
        """Look for stop strings, and hand on what text is certain."""
        self._text = self._detokenize(self.tokens)
        found = [place for stop in self.request.stop if (place := self._text.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            self._text = self._text[: min(found)]
        if self._on_piece is None:
            return
        certain = len(self._text) if self.finish else self._certain()
        if (certain > self._sent or self.finish) and len(self.logprobs) > self._sent_tokens:
            fresh = self.tokens[self._sent_tokens :]
            spelling = tuple(self._detokenize([token]) for token in fresh) if self.request.spelled else ()
            logprobs = tuple(self.logprobs[self._sent_tokens :])
            piece = Piece(self._text[self._sent : certain], tuple(fresh), logprobs, spelling)
            self._sent, self._sent_tokens = certain, len(self.logprobs)
            self._on_piece(piece)

    def _certain(self) -> int:
        """Characters that no further token can change: neither half a character nor the beginning of a stop string."""
        text = self._text.rstrip(UNFINISHED)
        for length in range(min(len(text), max(map(len, self.request.stop), default=1) - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.request.stop):
                return len(text) - length
        return len(text)

    def _ends(self, text: str) -> tuple[int, ...]:
        """Length of the text after each token. Tokens are written one by one where that adds up to the text."""
        pieces = [self._detokenize([token]) for token in self.tokens]
        if "".join(pieces) == text:
            total, ends = 0, []
            for piece in pieces:
                total += len(piece)
                ends.append(total)
            return tuple(ends)
        return tuple(min(len(self._detokenize(self.tokens[: i + 1])), len(text)) for i in range(len(self.tokens)))


def _uniform(seed: int, index: int) -> float:
    """The chance of an answer's token number `index`: a number in [0, 1). An attempt that failed has used none up."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53
