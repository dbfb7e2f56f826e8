"""Print the page of supported operators."""

from nfn_opt.weight_space.operators import operator_page

if __name__ == "__main__":
    print(operator_page(), end="")
