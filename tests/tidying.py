"""Work that is not done at once when it is cancelled."""

import asyncio


class Tidying:
    """Waits for ever; cancelled, it tidies up for a moment, and has `ended` if it was let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()  # to tidy up
        self.ended = False

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.begun.set()
            await asyncio.sleep(0.02)
            self.ended = True
