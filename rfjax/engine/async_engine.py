"""An asyncio front of the engine: one thread of its own steps while there is work. No JAX."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
from collections.abc import AsyncGenerator

from rfjax.engine.engine import Engine, Prompt
from rfjax.engine.handle import RequestHandle
from rfjax.engine.output import RequestOutput, StreamOutput
from rfjax.engine.sampling_params import SamplingParams
from rfjax.errors import RequestError


@dataclasses.dataclass(eq=False)
class _Waiter:
    """A coroutine that follows a request."""

    handle: RequestHandle
    whole: bool  # it waits for the end, not for pieces
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    error: BaseException | None = None
    given: list[int] = dataclasses.field(init=False)

    def __post_init__(self):
        self.given = [0] * len(self.handle.samples)


class AsyncEngine:
    """Serves the coroutines of one event loop; others may use the engine at the same time.

    Cancelling a coroutine, or leaving a stream, cancels its request. Where a step fails, the
    requests that were under way end, and their coroutines raise the step's error; those still in
    the queue go on. Use it with `async with`, or call `aclose` in the end.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiters: dict[str, _Waiter] = {}
        self._own: dict[str, RequestHandle] = {}  # whose output is not all given yet
        self._stepper: asyncio.Future[None] | None = None
        self._closed = False
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rfjax-engine")

    async def __aenter__(self) -> "AsyncEngine":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str = "",
    ) -> RequestOutput:
        """Continue a prompt.

        Args:
            prompt: a text or token ids.
            params: how to continue it; None takes the defaults.
            request_id: a name for it; None draws one.
            priority: the lower, the sooner.
            timeout: seconds after which it ends, with what it has by then and the finish reason
                "deadline"; None for never.
            cache_salt: only requests of the same salt share cached prefixes.

        Raises:
            RequestError, CapacityError: as `Engine.make_request`, `Engine.submit` and
                `Engine.step`; or this front is closed.
        """
        handle = self._submit(prompt, params, request_id, priority, timeout, cache_salt)
        async for _ in self._follow(_Waiter(handle, whole=True)):
            pass
        return handle.output()

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout: float | None = None,
        cache_salt: str = "",
    ) -> AsyncGenerator[StreamOutput, None]:
        """Continue a prompt, piece by piece.

        Args and errors as of `generate`, the errors at the first piece asked for.
        """
        handle = self._submit(prompt, params, request_id, priority, timeout, cache_salt)
        async with contextlib.aclosing(self._follow(_Waiter(handle, whole=False))) as pieces:
            async for piece in pieces:
                yield piece

    async def aclose(self) -> None:
        """End all requests of this front, with "abort", and its thread; no more are taken."""
        self._closed = True
        for request_id in self._waiters:
            self._engine.cancel(request_id)
        while self._stepper is not None:
            await asyncio.wait([self._stepper])
        self._executor.shutdown()

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None,
        priority: int,
        timeout: float | None,
        cache_salt: str,
    ) -> RequestHandle:
        if self._closed:
            raise RequestError("the engine's asyncio front is closed: make another AsyncEngine")
        request = self._engine.make_request(
            prompt,
            params,
            request_id=request_id,
            priority=priority,
            deadline=None if timeout is None else self._engine.now + timeout,
            cache_salt=cache_salt,
        )
        handle = self._engine.submit(request, prompt=prompt if isinstance(prompt, str) else None)
        self._own[handle.id] = handle
        return handle

    async def _follow(self, waiter: _Waiter) -> AsyncGenerator[StreamOutput, None]:
        handle = waiter.handle
        self._waiters[handle.id] = waiter
        try:
            self._start()
            while True:
                waiter.changed.clear()
                for piece in handle.pieces(waiter.given):
                    if waiter.error is None:
                        yield piece
                if waiter.error is not None:
                    raise waiter.error
                if handle.done and not handle.has_more(waiter.given):
                    return
                await waiter.changed.wait()
        finally:
            del self._waiters[handle.id]
            if not handle.done:
                self._engine.cancel(handle.id)

    def _start(self) -> None:
        """Let the thread step, unless it does or there is nothing to do."""
        for handle in list(self._own.values()):
            if handle.is_delivered:
                del self._own[handle.id]
        if self._stepper is None and self._own:
            loop = asyncio.get_running_loop()
            self._stepper = loop.run_in_executor(self._executor, self._step_on, loop)
            self._stepper.add_done_callback(self._stopped)

    def _step_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: step until all output is given."""
        while not all(handle.is_delivered for handle in list(self._own.values())):
            self._engine.step()
            loop.call_soon_threadsafe(self._notify)

    def _stopped(self, stepper: "asyncio.Future[None]") -> None:
        self._stepper = None
        error = None if stepper.cancelled() else stepper.exception()
        if error is not None:
            waiters = [waiter for waiter in self._waiters.values() if waiter.error is None]
            started = [w for w in waiters if self._engine.has_started(w.handle.id)]
            for waiter in started or waiters:
                waiter.error = error
                waiter.changed.set()
                self._engine.cancel(waiter.handle.id)
            if not waiters:
                self._own.clear()  # what fails is not ours, and whoever it is of steps
        self._notify()
        self._start()

    def _notify(self) -> None:
        for waiter in self._waiters.values():
            handle = waiter.handle
            if handle.done or (handle.has_more(waiter.given) and not waiter.whole):
                waiter.changed.set()
