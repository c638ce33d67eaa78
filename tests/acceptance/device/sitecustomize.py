"""A device that meters itself: Python imports this file at every start of a worker's processes.

DEVICE_METER: a file that gets a line for each call of the null renderer, as JSON:

pid, at     of its process, and when it began, in monotonic seconds
seconds     for which it rendered: all of the call but what it made way for, `away`
requests    pairs of job id and prompt, without padding

What a prompt says decides what becomes of its call, once the time has gone by: "fails" raises,
"unsafe" is refused by the safety checker.
"""

import os
import sys
import time

if "DEVICE_METER" in os.environ and "spawn_main" in " ".join(sys.orig_argv):
    import orjson

    from worker.null import NullRenderer
    from worker.render import NSFW

    draw = NullRenderer.render

    def render(self, batch, pause):
        started, away = time.monotonic(), 0.0

        def make_way():
            nonlocal away
            since = time.monotonic()
            try:
                return pause()
            finally:
                away += time.monotonic() - since

        try:
            images = draw(self, batch, make_way)
        finally:
            line = {
                "pid": os.getpid(),
                "at": started,
                "seconds": time.monotonic() - started - away,
                "away": away,
                "requests": sorted({(one.request.job_id, one.request.prompt) for one in batch}),
            }
            place = os.open(os.environ["DEVICE_METER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(place, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            os.close(place)
        prompts = [one.request.prompt for one in batch]
        if any("fails" in prompt for prompt in prompts):
            raise RuntimeError("the prompt fails")
        return [
            NSFW if "unsafe" in prompt else image
            for image, prompt in zip(images, prompts, strict=True)
        ]

    NullRenderer.render = render
