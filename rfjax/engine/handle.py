"""What a request has given so far, for whoever submitted it. No JAX.

An interrupt can come between any two instructions, so every step that cannot be repeated is one
append: a piece of output is there whole, with the count of tokens up to it, or not at all.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

from rfjax.engine.book import Shown
from rfjax.engine.burst_result import PromptResult
from rfjax.engine.finish import Failed, Finish
from rfjax.engine.output import (
    RequestOutput,
    SampleOutput,
    StreamOutput,
    error_of,
    stop_reason_of,
)
from rfjax.engine.request import Request
from rfjax.engine.sequence import new
from rfjax.engine.stop import Decoder, TextStream
from rfjax.errors import RequestError


class _Entry(NamedTuple):
    piece: StreamOutput
    n_tokens: int  # that the device made up to here
    finish: Finish | None


class SampleHandle:
    """The output of one sequence so far.

    Attributes:
        entries: its pieces, each with what is known of the sequence then.
    """

    def __init__(self, request: Request, index: int, make_decoder: Callable[[], Decoder]):
        self._request = request
        self._index = index
        self._make_decoder = make_decoder
        self._text: TextStream | None = None
        self.entries: list[_Entry] = []

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None while it goes on."""
        return self.entries[-1].finish if self.entries else None

    def show(self, news: Shown) -> Finish | None:
        """Take further tokens or the end; what was taken before is not taken again.

        Returns:
            Why the sequence is over, if it is: the scheduler may not know it yet.
        """
        output, logprobs, tops = news
        sequence_finish, token_ids = output.finish, output.token_ids
        _, n_before, finish = self.entries[-1] if self.entries else (None, 0, None)
        if finish is not None or (sequence_finish is None and output.n_output == n_before):
            return finish
        assert output.n_output == n_before + len(token_ids)
        text, self._text = self._text or self._replayed(), None
        try:
            shown, n, finish = text.push(token_ids, sequence_finish)
        except RequestError as error:  # the model chose a token that the tokenizer does not have
            shown, n, finish = "", len(token_ids), Failed(str(error))
        if not self._request.params.logprobs:
            tops = None
        if n < len(token_ids):  # a stop string ended it before
            token_ids, logprobs = token_ids[:n], logprobs[:n]
            tops = None if tops is None else tops[:n]
        reason = stop_reason = error = None
        if finish is not None:
            reason, error = finish.reason, error_of(finish)
            stop_reason = stop_reason_of(finish, self._request)
        of = self._request.id, self._index
        no_reasoning = ""  # parted from the answer later, if at all
        told = shown, list(token_ids), logprobs, reason, stop_reason, tops, error, *of, no_reasoning
        piece = new(StreamOutput, told)
        self.entries.append(new(_Entry, (piece, output.n_output, finish)))
        self._text = text
        return finish

    def output(self) -> SampleOutput:
        """The whole; of a sequence that has ended."""
        pieces = [entry.piece for entry in self.entries]
        last = pieces[-1]
        assert last.finish_reason is not None
        tops = None
        if self._request.params.logprobs:
            tops = list(chain.from_iterable(piece.top_logprobs or () for piece in pieces))
        return SampleOutput(
            text="".join(piece.text for piece in pieces),
            token_ids=list(chain.from_iterable(piece.token_ids for piece in pieces)),
            finish_reason=last.finish_reason,
            logprobs=list(chain.from_iterable(piece.logprobs for piece in pieces)),
            stop_reason=last.stop_reason,
            top_logprobs=tops,
            error=last.error,
        )

    def _replayed(self) -> TextStream:
        """A text stream that has read what was shown: at the start, and after an interrupt."""
        text = TextStream(self._make_decoder(), self._request.params)
        text.push(list(chain.from_iterable(entry.piece.token_ids for entry in self.entries)))
        return text


class RequestHandle:
    """A request that was submitted, and its output so far.

    Attributes:
        request: the request.
        samples: `request.params.n` of them.
        prompt: its text; None where token ids were given.
    """

    def __init__(
        self,
        request: Request,
        make_decoder: Callable[[], Decoder],
        *,
        prompt: str | None = None,
        on_output: Callable[[StreamOutput], object] | None = None,
    ):
        """A handle of a request that has given nothing yet.

        Args:
            request: the request.
            make_decoder: gives a decoder for one sample's tokens.
            prompt: the text, for `RequestOutput.prompt`.
            on_output: called with every piece.
        """
        self.request = request
        self.prompt = prompt
        self.samples = tuple(
            SampleHandle(request, index, make_decoder) for index in range(request.params.n)
        )
        self.on_output = on_output
        self._prompt: dict[int, PromptResult] = {}
        self._delivered = [0] * request.params.n

    @property
    def id(self) -> str:
        """The request's name."""
        return self.request.id

    @property
    def done(self) -> bool:
        """Whether all samples have ended."""
        return all(sample.finish is not None for sample in self.samples)

    @property
    def is_delivered(self) -> bool:
        """Whether all samples have ended and `undelivered` has given everything."""
        return self.done and not self.has_more(self._delivered)

    def has_more(self, given: list[int]) -> bool:
        """Whether there is more than `given` pieces of each sample."""
        return given != [len(sample.entries) for sample in self.samples]

    def pieces(self, given: list[int]) -> Iterator[StreamOutput]:
        """What is new since `given` pieces of each sample, which are counted up before each."""
        for index, sample in enumerate(self.samples):
            entries = sample.entries
            while given[index] < len(entries):
                given[index] += 1
                yield entries[given[index] - 1][0]

    def undelivered(self) -> Iterator[StreamOutput]:
        """Pieces that were not given here before: the engine's."""
        return self.pieces(self._delivered)

    def report(self, result: PromptResult) -> None:
        """Keep likelihoods of the prompt."""
        self._prompt[result.start] = result

    def output(self) -> RequestOutput:
        """What the request gave.

        Raises:
            RequestError: it has not ended.
        """
        if not self.done:
            raise RequestError(f"request {self.id!r} has not ended: step the engine until it has")
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=list(self.request.token_ids),
            samples=tuple(sample.output() for sample in self.samples),
            prompt_logprobs=self._prompt_logprobs(),
        )

    def _prompt_logprobs(self) -> list[dict[int, float] | None] | None:
        tokens = self.request.token_ids
        if self.request.params.prompt_logprobs is None:
            return None
        listed: list[dict[int, float] | None] = [None] * len(tokens)
        for start, result in self._prompt.items():
            for at, logprob in enumerate(result.logprobs, start=start + 1):
                top = result.top_logprobs[at - start - 1]
                listed[at] = {tokens[at]: logprob, **top}
        return None if None in listed[1:] else listed
