"""The services of the benchmark as Celery tasks: a target that answers at once, and the callback of a chord of them.

Durable: quorum queues and persistent messages whose publisher waits for the broker's confirm, tasks that are acked when they have
run, and results in a Redis that appends to a file which it syncs once a second.
"""

import json
import os
import time

from celery import Celery

app = Celery("fanout", broker=os.environ["PEERS_BROKER"], backend=os.environ["PEERS_REDIS"])
app.conf.update(
    task_default_queue="peers.celery",
    task_default_queue_type="quorum",
    task_default_delivery_mode="persistent",
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=32,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    result_expires=600,
    worker_hijack_root_logger=False,
)


@app.task
def target(payload):
    return {"at": time.time(), "rest": "x" * (len(payload) - 50)}


@app.task(ignore_result=True)
def final(results, fan_out):
    """Tells the driver of the end, and how long it came after the last result."""
    fan_in_ms = (time.time() - max(result["at"] for result in results)) * 1000
    ended = json.dumps({"fan_out": fan_out, "results": len(results), "fan_in_ms": fan_in_ms})
    app.backend.client.rpush("peers.ended", ended)
