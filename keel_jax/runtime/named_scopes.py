"""Names of scopes in traced programs, by which analyses of the compiled program find operations.

`jax.named_scope(NAME)` gives operations the name, which appears in the `op_name` of the
instructions' metadata. It does not change what the program computes.
"""

# Around a branch of a conditional that a program is expected never to take: counts of what the
# program executes leave this branch out.
RARE_BRANCH = "rare_branch"
