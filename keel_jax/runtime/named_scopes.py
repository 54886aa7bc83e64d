"""Names that a traced program carries and that readers of the compiled program look for.

A name is put on operations by `jax.named_scope(NAME)` and is found again in the `op_name` of the
instructions' metadata. It changes nothing that the program computes.
"""

# Around a branch of a conditional that a program is expected never to take: whoever counts what the
# program executes leaves the branch out.
RARE_BRANCH = "rare_branch"
