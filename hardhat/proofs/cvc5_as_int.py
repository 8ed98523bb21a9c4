"""A solver for halmos: cvc5 that reads bit vectors as integers, in which a division by a constant is easy.

Usage: cvc5_as_int.py QUERY.smt2    (needs the package cvc5)
"""

import sys

import cvc5


def main(path: str) -> None:
    solver = cvc5.Solver()
    solver.setOption("solve-bv-as-int", "sum")
    solver.setOption("produce-models", "true")
    parser = cvc5.InputParser(solver)
    parser.setFileInput(cvc5.InputLanguage.SMT_LIB_2_6, path)
    symbols = parser.getSymbolManager()
    status = ""
    while not (command := parser.nextCommand()).isNull():
        if command.getCommandName() == "get-model" and status != "sat":
            continue
        answer = command.invoke(solver, symbols)
        if command.getCommandName() == "check-sat":
            status = answer.strip()
        sys.stdout.write(answer)


if __name__ == "__main__":
    main(sys.argv[1])
