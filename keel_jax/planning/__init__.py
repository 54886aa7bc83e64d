"""What hardware can do, and what a run will need of it.

chips                                what the hardware can do, with sources
hlo_text, hlo                        a compiled program: its text, and how often each part runs
flops, library_calls, traffic,
replica_groups, buffers, memory,
cycles, estimate                     what such a program takes
cost_model                           the same, predicted without a compiler
recompute_choice, resolve            a config in which nothing is "auto" any more
compile_step, report, report_json,
report_text, search                  what `keel_jax.plan` is made of
"""
