"""State of one request in the engine: its slot and its answer so far. Host memory only."""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError

from paliscribe.engine.sampling import MIN_TEMPERATURE, Draw
from paliscribe.records import FinishReason, Piece, Prediction, Request

OnPiece = Callable[[Piece], None]
Detokenize = Callable[[Sequence[int]], str]
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what an incomplete UTF-8 sequence decodes to


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
        self.first_token: float | None = None  # seconds from submission
        self.prompt_tokens = len(prompt)  # the engine adds the image's
        self.row: int | None = None  # its slot
        self.held = 0  # tokens in the slot
        self.launched = 0  # tokens whose sampling was launched on the device
        self.attempt = 0  # counts restarts; unread tokens of an earlier attempt are dropped
        self._detokenize, self._on_piece = detokenize, on_piece
        self._tracks_text = on_piece is not None or bool(request.stop)
        self._text = ""  # updated only with a callback or stop strings
        self._sent, self._sent_tokens = 0, 0  # characters and tokens passed to the callback

    def draw(self) -> Draw | None:
        """Sampling parameters of the next token; None: greedy. Idempotent until the token is launched."""
        if self.request.temperature <= MIN_TEMPERATURE:  # some clients send 1e-38 for greedy
            return None
        return Draw(self.request.temperature, self.request.top_p, _uniform(self.request.seed, self.launched))

    def add_token(self, token: int, logprob: float, end_tokens: frozenset[int]) -> None:
        """Append a token; sets `finish` if it was the last. Passes text that can no longer change to the callback."""
        self.logprobs.append(logprob)
        if self.first_token is None:
            self.first_token = time.monotonic() - self.submitted
        if token in end_tokens:
            self.finish = "stop"
        else:
            self.tokens.append(token)
            if len(self.tokens) >= self.request.max_tokens:
                self.finish = "length"
        if self._tracks_text:
            self._update_text()

    def restart(self) -> None:
        """Discard the answer and start over. The tokens will be the same, so pieces already passed on stay valid."""
        self.attempt += 1
        self.row, self.held, self.launched = None, 0, 0
        self.tokens, self.logprobs, self._text = [], [], ""

    def answer(self) -> None:
        """Resolve the future with the finished answer."""
        text = self._text if self._tracks_text else self._detokenize(self.tokens)
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
        """Resolve the future with an error prediction of this request."""
        self._resolve(Prediction(self.request.id, "", (), (), None, kind, message))

    def fail(self, error: Exception) -> None:
        """Set an exception that is not the request's fault on the future."""
        with contextlib.suppress(InvalidStateError):  # cancelled concurrently
            self.future.set_exception(error)

    def _resolve(self, prediction: Prediction) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled concurrently
            self.future.set_result(prediction)

    def _update_text(self) -> None:
        """Detokenize, apply stop strings, and pass new stable text to the callback."""
        self._text = self._detokenize(self.tokens)
        found = [place for stop in self.request.stop if (place := self._text.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            self._text = self._text[: min(found)]
        if self._on_piece is None:
            return
        certain = len(self._text) if self.finish else self._stable_length()
        if (certain > self._sent or self.finish) and len(self.logprobs) > self._sent_tokens:
            fresh = self.tokens[self._sent_tokens :]
            spelling = tuple(self._detokenize([token]) for token in fresh) if self.request.spelled else ()
            logprobs = tuple(self.logprobs[self._sent_tokens :])
            piece = Piece(self._text[self._sent : certain], tuple(fresh), logprobs, spelling)
            self._sent, self._sent_tokens = certain, len(self.logprobs)
            self._on_piece(piece)

    def _stable_length(self) -> int:
        """Characters that later tokens cannot change: no partial character, no prefix of a stop string at the end."""
        text = self._text.rstrip(UNFINISHED)
        for length in range(min(len(text), max(map(len, self.request.stop), default=1) - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.request.stop):
                return len(text) - length
        return len(text)

    def _ends(self, text: str) -> tuple[int, ...]:
        """Length of the text after each token, in characters."""
        pieces = [self._detokenize([token]) for token in self.tokens]
        if "".join(pieces) == text:
            total, ends = 0, []
            for piece in pieces:
                total += len(piece)
                ends.append(total)
            return tuple(ends)
        return tuple(min(len(self._detokenize(self.tokens[: i + 1])), len(text)) for i in range(len(self.tokens)))


def _uniform(seed: int, index: int) -> float:
    """The random number of token `index` of an answer, in [0, 1): a hash, so failed attempts do not advance it."""
    digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53
