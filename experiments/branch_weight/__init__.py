"""What decides: the norm after the sum, or the weight of the branch?"""
