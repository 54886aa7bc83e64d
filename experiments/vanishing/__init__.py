"""Why does Keel stop learning at large rates, and what helps?"""
