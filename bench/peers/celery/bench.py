"""Invokes chords, as many at a time as `fanfare bench` has fan-outs, and prints what came of each width as a line of JSON."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from celery import chord
from fanout import app, final, target

# A chord is published by whoever invokes it, message after message; so many do that at a time.
PUBLISHERS = 16
PATIENCE = 120


def invoke(fan_out, width, payload):
    started = time.time()
    chord((target.s(payload) for _ in range(width)), final.s(fan_out)).apply_async()
    return (time.time() - started) * 1000


def run_for(seconds, width, payload, open_at_once):
    """Chords per second, and how long each invocation and each fan-in took."""
    redis = app.backend.client
    redis.delete("peers.ended")
    invocations, fan_ins, started = [], [], time.time()
    with ThreadPoolExecutor(PUBLISHERS) as publishers:
        while True:
            goes_on = time.time() - started < seconds
            while goes_on and len(invocations) - len(fan_ins) < open_at_once:
                invocations.append(publishers.submit(invoke, len(invocations), width, payload))
            if len(fan_ins) == len(invocations):
                break
            _, ended = redis.blpop("peers.ended", PATIENCE) or sys.exit("a chord has not ended")
            ended = json.loads(ended)
            assert ended["results"] == width, ended
            fan_ins.append(ended["fan_in_ms"])
    took = time.time() - started
    return len(fan_ins) / took, median(future.result() for future in invocations), median(fan_ins)


def main(widths, payload_bytes, seconds):
    payload = "x" * (payload_bytes - 2)
    for width in widths:
        open_at_once = min(max(2000 // width, 2), 64)
        run_for(1, width, payload, open_at_once)
        fan_outs_per_s, _, _ = run_for(seconds, width, payload, open_at_once)
        _, invoke_ms, fan_in_ms = run_for(seconds / 2, width, payload, 1)
        figures = {"fan_outs_per_s": fan_outs_per_s, "invoke_ms": invoke_ms, "fan_in_ms": fan_in_ms}
        print(json.dumps({"width": width, **figures}), flush=True)
    with app.connection_for_write() as connection:
        queue = app.amqp.queues["peers.celery"].bind(connection.default_channel)
        queue.delete()
        queue.exchange.delete()


if __name__ == "__main__":
    main([int(width) for width in sys.argv[1].split(",")], int(sys.argv[2]), float(sys.argv[3]))
