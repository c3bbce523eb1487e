"""Seconds of one update of singh's ACGAN: the documents' own loop, ours inside fit, PyTorch. Ratios in one run.

    python tests/bench/acgan_update.py [--rounds 7] [--updates 10] [--no-torch]

Each variant has a process of its own, so that the libraries' threads never meet, warms up, and then waits. In every
round each variant makes some updates in its turn, in changing order. Printed: the median over the rounds of seconds
per update (wall and CPU), and the median of the rounds' ratios of wall time. Exit status 0: all targets met; 1: one missed; 2: a variant failed.
Data: 5,216 random uint8 images of 64 x 64, which take as long as X-rays. Run it on an otherwise idle machine.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VARIANTS = {'loop': "the documents' loop, float32", 'fit-float32': 'ours in fit, float32',
            'fit-bfloat16': 'ours in fit, mixed_bfloat16', 'torch-float32': 'PyTorch channels_last, float32',
            'torch-bfloat16': 'PyTorch channels_last, bf16 autocast'}
TARGETS = [('fit-float32', 'loop', 0.85), ('fit-bfloat16', 'loop', 0.6), ('fit-float32', 'torch-float32', 1.1)]


# In a variant's process: protocol lines on the stdout it was given, one per warm-up or round.

def wait_for_turn(): return sys.stdin.readline().strip() == 'go'


def clocks(): return time.perf_counter(), time.process_time()


def elapsed(start, updates):
    "Wall and CPU seconds per update since `start`."
    return {k: (now - then) / updates for k, now, then in zip(('seconds', 'cpu'), clocks(), start)}


def timed_updates(update, updates, report):
    "Warm up, then time rounds of updates as the parent asks for them."
    losses = [update() for _ in range(3)][-1]
    report(ready=True, losses=[float(v) for v in losses])
    while wait_for_turn():
        start = clocks()
        for _ in range(updates): update()
        report(**elapsed(start, updates))


def run_loop(images, labels, args, report):
    from acgan_loop import make_update
    update, acgan, (G, D, _) = make_update(images, labels, args.batch_size)
    assert (G.count_params(), D.count_params()) == (19_616_963, 5_289_539)
    first = {}
    timed_updates(update, args.updates, lambda **fields: (first or first.update(acgan.traces), report(**fields)))
    if acgan.traces != first: raise RuntimeError(f'train functions were traced anew: {first}, then {acgan.traces}')


def run_torch(images, labels, args, report):
    from acgan_torch import make_update
    update, acgan = make_update(images, labels, args.batch_size, autocast=args.worker.endswith('bfloat16'))
    assert acgan.parameters() == [19_616_963, 5_289_539]
    timed_updates(update, args.updates, report)


def run_fit(images, labels, args, report):
    "One call of fit: an epoch is one round, and waits for its turn at its beginning."
    import keras
    keras.config.set_dtype_policy('mixed_bfloat16' if args.worker.endswith('bfloat16') else 'float32')
    from dataclasses import replace
    from cxr_acgan.acgan import SINGH, build_acgan

    class Rounds(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch and not wait_for_turn(): sys.exit(0)         # the parent is gone
            self.start = clocks()

        def on_epoch_end(self, epoch, logs=None):
            if epoch: report(**elapsed(self.start, args.updates))
            else: report(ready=True, losses=[logs[k] for k in gan.loss_names])  # the first epoch warms up

    gan = build_acgan(replace(SINGH, batch_size=args.batch_size))
    assert (gan.generator.count_params(), gan.discriminator.count_params()) == (19_616_963, 5_289_539)
    gan.fit(images, labels, batch_size=args.batch_size, steps_per_epoch=args.updates, epochs=args.rounds + 1,
            callbacks=[Rounds()], verbose=0)


def work(args):
    import numpy as np
    lines = os.fdopen(os.dup(1), 'w', buffering=1)                 # libraries may print: they get stderr
    os.dup2(2, 1)
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5216, 64, 64, 1), dtype=np.uint8), rng.integers(0, 2, 5216)
    run = {'loop': run_loop, 'fit': run_fit, 'torch': run_torch}[args.worker.split('-')[0]]
    run(images, labels, args, lambda **fields: print(json.dumps(fields), file=lines))


# In the parent.

class Worker:
    "A variant's process; what it writes on stderr goes to a temporary file and is shown if it fails."
    def __init__(self, name, args):
        self.name, self.seconds, self.cpu, self.stderr = name, [], [], tempfile.TemporaryFile('w+')
        command = [sys.executable, __file__, '--worker', name, '--rounds', str(args.rounds),
                   '--updates', str(args.updates), '--batch-size', str(args.batch_size)]
        env = os.environ | {'KERAS_BACKEND': 'tensorflow', 'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': ''}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr,
                                        text=True, env=env)
        self.losses = self.answer()['losses']

    def answer(self):
        line = self.process.stdout.readline()
        if not line: self.fail()
        return json.loads(line)

    def fail(self):
        self.process.wait()
        self.stderr.seek(0)
        raise RuntimeError(f'{self.name} ended with status {self.process.returncode}:\n' + self.stderr.read()[-3000:])

    def turn(self):
        print('go', file=self.process.stdin, flush=True)
        answer = self.answer()
        self.seconds.append(answer['seconds'])
        self.cpu.append(answer['cpu'])

    def close(self):
        "End the process; a failed check after the last round (a retrace) is an error too."
        self.process.stdin.close()
        if self.process.wait(): self.fail()


def ratio(workers, a, b): return statistics.median(x / y for x, y in zip(workers[a].seconds, workers[b].seconds))


def table(workers):
    print(f'{"":38}{"s/update":>9}{"min":>8}{"max":>8}{"CPU s":>8}{"/ loop":>8}{"/ torch":>8}   losses after warm-up')
    for name, w in workers.items():
        against = [f'{ratio(workers, name, other):.2f}' if other in workers else '-' for other in ('loop', 'torch-float32')]
        print(f'{VARIANTS[name]:38}{statistics.median(w.seconds):9.4f}{min(w.seconds):8.4f}{max(w.seconds):8.4f}{statistics.median(w.cpu):8.4f}'
              f'{against[0]:>8}{against[1]:>8}   ' + ' '.join(f'{v:.3f}' for v in w.losses))


def check_targets(workers):
    met = True
    for a, b, limit in TARGETS:
        if b not in workers:
            print(f'skipped: {VARIANTS[a]} / {VARIANTS[b]}: PyTorch is not installed or --no-torch was given')
            continue
        r = ratio(workers, a, b)
        met &= r <= limit
        print(f'{"met   " if r <= limit else "MISSED"}: {VARIANTS[a]} / {VARIANTS[b]} = {r:.2f}, target at most {limit}')
    return met


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='turns of each variant')
    parser.add_argument('--updates', type=int, default=10, help='updates in a turn')
    parser.add_argument('--batch-size', type=int, default=16, help='real images of an update')
    parser.add_argument('--no-torch', action='store_true', help='leave PyTorch out')
    parser.add_argument('--worker', choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if min(args.rounds, args.updates, args.batch_size) < 1: parser.error('--rounds, --updates and --batch-size must be at least 1')
    if args.worker: return work(args)
    if hasattr(os, 'getloadavg') and os.getloadavg()[0] > 0.5:
        print(f'warning: the machine is busy (load {os.getloadavg()[0]:.1f}): ratios of threads that wait for each other mean little', file=sys.stderr)
    torch = not args.no_torch and importlib.util.find_spec('torch') is not None
    workers = {}
    try:
        for name in VARIANTS:
            if torch or not name.startswith('torch'): workers[name] = Worker(name, args)
        for i in range(args.rounds):
            order = list(workers.values())
            for w in order[i % len(order):] + order[:i % len(order)]: w.turn()
        for w in workers.values(): w.close()
    except (RuntimeError, KeyboardInterrupt) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        for w in workers.values():
            if w.process.poll() is None: w.process.kill()
    print(f'singh, batch {args.batch_size}, {os.cpu_count()} CPUs, {args.rounds} rounds of {args.updates} updates')
    table(workers)
    return 0 if check_targets(workers) else 1


if __name__ == '__main__': sys.exit(main())
