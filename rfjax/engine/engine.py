"""The engine: many requests on one device, one step of the host for each burst. No JAX.

A step plans and dispatches bursts until `depth` of them are under way, and then reads the oldest:
the device is busy with the next one while the host looks at the last. Any thread may submit and
cancel; several may step, one after the other, so `LLM.generate` works from several at once.

Whatever interrupts a step (an error of the device, Ctrl-C, a callback that raises), the engine
stays usable. What an event changes is one assignment of one value (`rfjax.engine.book`), so it has
happened or not. Where pages of the device may be lost, all are given back: the requests under way
return to the queue and are computed again by the next step, with the same tokens. Nothing is ended
but what the caller cancels. A handle has every piece of output, whatever happens; a piece on its
way to a callback or to whom `step` returns can be lost to an interrupt.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from rfjax.engine.book import Fault, Reported, Shown, abandoned, advanced, new_book, received
from rfjax.engine.device import Device, Pending
from rfjax.engine.finish import Failed
from rfjax.engine.handle import RequestHandle
from rfjax.engine.metrics import Metrics
from rfjax.engine.output import StreamOutput
from rfjax.engine.plan import Plan
from rfjax.engine.request import Request, as_token_ids, make_request
from rfjax.engine.sampling_params import SamplingParams
from rfjax.engine.scheduler import CacheLost, Cancel, Event, Stopped, Submit, Tick
from rfjax.engine.scheduler_config import SchedulerConfig
from rfjax.engine.sequence import AwaitingFork, Waiting
from rfjax.engine.stop import Decoder
from rfjax.engine.warm_up import WarmUp, compile_all
from rfjax.errors import ConfigError, RequestError
from rfjax.tokenizer.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class Engine:
    """Requests in, pieces of output out; nothing runs but in `step`."""

    def __init__(
        self,
        device: Device,
        sizes: SchedulerConfig,
        *,
        vocab_size: int,
        tokenizer: Tokenizer | None = None,
        clock: Callable[[], float] = time.monotonic,
        depth: int = 2,
    ):
        """An engine without requests.

        Args:
            device: carries out plans; of the same sizes, and this engine's alone.
            sizes: how much runs at a time, and on which pages.
            vocab_size: token ids of the model are below it.
            tokenizer: reads and writes text; None for a model that has none.
            clock: seconds, for deadlines and latencies.
            depth: bursts under way while the host works on another's results, and that one: 2
                keeps the device busy, 1 waits for each.

        Raises:
            ConfigError: another depth.
        """
        if depth not in (1, 2):
            raise ConfigError(f"depth: got {depth!r}, expected 1 or 2 bursts under way")
        self._device = device
        self._sizes = sizes
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._clock = clock
        self._depth = depth
        self._book = new_book(sizes)
        self._handles: dict[str, RequestHandle] = {}
        self._cancelled: collections.deque[str] = collections.deque()
        self._flying: collections.deque[Pending] = collections.deque()
        self._broken = False  # the device is to be reset before it is used again
        self._given: list[StreamOutput] = []
        self._changing = threading.Lock()  # of the book and what the handles hold: milliseconds
        self._stepping = threading.RLock()  # of all that a step does, waiting included

    @property
    def metrics(self) -> Metrics:
        """What was done so far, and what is under way."""
        return self._book.metrics

    @property
    def max_context(self) -> int:
        """Most tokens of a sequence, prompt and output."""
        return self._sizes.max_context

    @property
    def now(self) -> float:
        """The time on the engine's clock, which deadlines refer to."""
        return self._clock()

    @property
    def has_work(self) -> bool:
        """Whether a request is under way, or has output that `step` did not give yet."""
        return bool(self._handles)

    @property
    def free_pages(self) -> tuple[int, ...]:
        """Pages of each cache group that no sequence owns, cached prefixes included."""
        return tuple(pool.n_available for pool in self._book.state.pools)

    def make_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
    ) -> Request:
        """Check a prompt and what is asked for, before anything runs; it arrives now.

        Args:
            prompt: a text or token ids.
            params: how to continue it; None takes the defaults.
            request_id: a name for it; None draws one.
            priority: the lower, the sooner.
            deadline: when to give it up, on the engine's clock (`now`); None for never.
            cache_salt: only requests of the same salt share cached prefixes.

        Raises:
            RequestError: as `rfjax.engine.request.make_request`; or text or stop strings for a
                model without tokenizer.
        """
        params = SamplingParams() if params is None else params
        tokenizer = self._tokenizer
        if tokenizer is None and (isinstance(prompt, str) or params.stop_strings):
            what = "text" if isinstance(prompt, str) else "stop strings"
            raise RequestError(
                f"the model has no tokenizer, so it cannot read {what}: give token ids instead"
            )
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt) if tokenizer is not None and prompt else []
        else:
            ids = as_token_ids(prompt)
        return make_request(
            ids,
            params,
            vocab_size=self._vocab_size,
            max_context=self._sizes.max_context,
            end_ids=frozenset() if tokenizer is None else tokenizer.eog_ids,
            request_id=request_id,
            priority=priority,
            arrival=self._clock(),
            deadline=deadline,
            cache_salt=cache_salt,
        )

    def submit(
        self,
        request: Request,
        *,
        prompt: str | None = None,
        on_output: Callable[[StreamOutput], object] | None = None,
    ) -> RequestHandle:
        """Put a request into the queue; from any thread.

        Args:
            request: of `make_request`.
            prompt: its text, for `RequestOutput.prompt`.
            on_output: called with every piece of output by the thread that steps, where it may
                submit and cancel. One that raises ends its request, and `step` raises its error.

        Returns:
            Where its output will be found.

        Raises:
            RequestError: its name is taken by a request that is under way, or it may grow beyond
                the engine's context.
            CapacityError: the queue is full.
        """
        handle = RequestHandle(request, self._decoder, prompt=prompt, on_output=on_output)
        with self._changing:
            self._tell()
            known = self._handles.get(request.id)
            if known is not None and known.done:  # with output that was not given yet
                raise RequestError(
                    f"request id {request.id!r} is taken by a request that is under way: choose "
                    "another"
                )
            book, _ = advanced(self._book, Submit(request))
            self._handles[request.id] = handle
            self._book = book
        self._cancel_asked()
        return handle

    def cancel(self, request_id: str) -> None:
        """End a request: its pages are free, its samples end with "abort"; from any thread.

        Without effect once it has ended. It waits for nothing and may be called anywhere, as by a
        generator that is thrown away: where another call is changing the engine just then, that
        one cancels.
        """
        self._cancelled.append(request_id)
        self._cancel_asked()

    def step(self) -> list[StreamOutput]:
        """Dispatch ahead, read the oldest burst, and give the pieces that are new.

        Raises:
            CapacityError: the device ran out of memory; or whatever else the device raises. All
                pages are free, and the requests that were under way are in the queue again: the
                next step tries them anew, unless they are cancelled.
        """
        with self._stepping:
            self._settle()
            self._dispatch_ahead()
            self._read_oldest()
            if not self._book.state.live:
                self._abandon()
            return self._deliver()

    def run_until_done(self, handles: Iterable[RequestHandle] | None = None) -> None:
        """Step until these requests have ended; None for all.

        Raises:
            As `step`.
        """
        if handles is None:
            while self.has_work:
                self.step()
            return
        for handle in handles:
            while not handle.done:
                self.step()

    def stream(self, handle: RequestHandle) -> Iterator[StreamOutput]:
        """A request's pieces as they come, stepping while there is none.

        Leaving the iterator before its end cancels the request.

        Raises:
            As `step`.
        """
        given = [0] * len(handle.samples)
        try:
            while not handle.done:
                yield from handle.pieces(given)
                if not handle.done:
                    self.step()
            yield from handle.pieces(given)
        finally:
            if not handle.done:
                self.cancel(handle.id)

    def warm_up(
        self,
        sampling_params: Sequence[SamplingParams] = (),
        *,
        sequences: int | None = None,
        prompt_tokens: int | None = None,
        threads: int | None = None,
    ) -> WarmUp:
        """Compile ahead what requests will need, so that none waits for the compiler.

        Without it each program is compiled when a request first needs it. Nothing is computed, and
        requests may come and go meanwhile: those that need a program that is being compiled wait
        for that one.

        Args:
            sampling_params: of every kind that will come. One program serves all temperatures and
                cutoffs; penalties, several samples, log-probabilities of prompts, and more than
                eight stop tokens or biases take others.
            sequences: most of them under way at a time; None takes all that the engine allows.
            prompt_tokens: most tokens of prompts that arrive together; None sets no limit.
            threads: programs compiled at a time; None takes one for each processor.

        Returns:
            What was compiled, and how long it took.

        Raises:
            RequestError: no model can serve such parameters, as `make_request`.
            ConfigError: a number below 1.
            Whatever the compiler raises, as `step` would.
        """
        for name, value in (("sequences", sequences), ("prompt_tokens", prompt_tokens)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1")
        requests = [self.make_request([0], params) for params in sampling_params]
        sizes = self._sizes
        slots = min(sequences or sizes.slots, sizes.slots)
        with self._stepping:
            if self._broken:
                self._renew()
            self._broken = True  # until there is room for what the requests list
            programs = self._device.programs(
                requests,
                sequences=slots,
                prompt_tokens=prompt_tokens or slots * sizes.max_context,
            )
            self._broken = False
        return compile_all(programs, threads=threads)

    def release(self) -> None:
        """Free the memory of the cache until a request needs it, and forget cached prefixes.

        Requests under way go back to the queue and are computed again by the next step.
        """
        with self._stepping:
            self._broken = True
            self._forget()
            self._device.release()

    def has_started(self, request_id: str) -> bool:
        """Whether a request is under way and was admitted at least once."""
        state = self._book.state
        numbers = state.requests.get(request_id, ())
        return any(
            not isinstance(state.live.get(number), Waiting | AwaitingFork | None)
            for number in numbers
        )

    def _decoder(self) -> Decoder:
        return _Silent() if self._tokenizer is None else self._tokenizer.stream(continuation=True)

    def _dispatch_ahead(self) -> None:
        while len(self._flying) < self._depth and self._book.state.live:
            if self._broken:
                self._renew()
            try:
                self._broken = True  # until what is planned is dispatched
                plan = self._send(Tick(self._clock()))
                assert plan is not None
                if not plan.is_empty:
                    self._flying.append(self._device.dispatch(plan))
                self._broken = False
            except BaseException:
                self._forget()
                raise
            if plan.is_empty:
                return

    def _read_oldest(self) -> None:
        if not self._flying or not self._book.state.live:
            return
        pending = self._flying[0]
        try:
            result = pending.read()
        except KeyboardInterrupt:
            raise  # the device goes on, and the next step reads it
        except BaseException:
            self._broken = True
            self._forget()
            raise
        with self._changing:
            self._book = received(self._book, pending.plan, result, self._clock())
        self._flying.popleft()
        self._settle()

    def _abandon(self) -> None:
        """Nobody is left for whom the bursts under way are."""
        for pending in self._flying:
            with self._changing:
                self._book = abandoned(self._book, pending.plan, self._clock())
        self._flying.clear()

    def _forget(self) -> None:
        """The pages and all bursts under way are lost."""
        self._flying.clear()
        self._send(CacheLost())

    def _renew(self) -> None:
        """Pages and rows that nothing is left of."""
        self._forget()
        self._device.reset()
        self._broken = False

    def _send(self, event: Event) -> Plan | None:
        with self._changing:
            self._book, plan = advanced(self._book, event)
        self._settle()
        return plan

    def _settle(self) -> None:
        """Tell the handles what happened, and the scheduler what ends by that."""
        with self._changing:
            self._tell()
        self._cancel_asked()

    def _cancel_asked(self) -> None:
        # Whoever holds the lock comes here next. It may be this very thread, interrupted by the
        # garbage collector, so this must not wait.
        while self._cancelled and not self._changing.locked():
            with self._changing:
                while self._cancelled:
                    event = Cancel(self._cancelled[0], self._clock())
                    self._book, _ = advanced(self._book, event)
                    self._tell()
                    self._cancelled.popleft()

    def _tell(self) -> None:
        """Carry the news to the handles; each step can be repeated after an interrupt."""
        while news := self._book.news:
            stops: list[Stopped] = []
            handles = self._handles
            for item in news:
                if isinstance(item, Shown):  # nearly all: one for each sequence of a burst
                    output = item[0]
                    finish = handles[output.request.id].samples[output.sample].show(item)
                    if finish is not None and output.finish is None:
                        stops.append(Stopped(output.sequence, finish, self._clock()))
                elif isinstance(item, Reported):
                    handles[item.request_id].report(item.result)
                elif isinstance(item, Fault):
                    stops.append(Stopped(item.sequence, Failed(item.message), self._clock()))
            book = dataclasses.replace(self._book, news=())
            for stop in stops:
                book, _ = advanced(book, stop)
            self._book = book

    def _deliver(self) -> list[StreamOutput]:
        for handle in list(self._handles.values()):
            for piece in handle.undelivered():
                self._given.append(piece)
                if handle.on_output is not None:
                    self._call(handle, handle.on_output, piece)
        with self._changing:
            self._tell()
            live = self._book.state.requests
            for name, handle in list(self._handles.items()):
                # One that has not ended and is not under way was never quite submitted.
                if name not in live and (handle.is_delivered or not handle.done):
                    del self._handles[name]
        given, self._given = self._given, []
        return given

    def _call(
        self,
        handle: RequestHandle,
        on_output: Callable[[StreamOutput], object],
        piece: StreamOutput,
    ) -> None:
        try:
            on_output(piece)
        except BaseException as error:
            handle.on_output = None
            finish = Failed(f"on_output raised {error!r}")
            for number in self._book.state.requests.get(handle.id, ()):
                self._send(Stopped(number, finish, self._clock()))
            raise


class _Silent:
    """Decodes nothing, where there is no tokenizer."""

    def push(self, ids: int | Iterable[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""
