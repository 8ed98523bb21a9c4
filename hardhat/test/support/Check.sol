// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Vm} from "./Vm.sol";

/// @dev Assertions and number ranges.
abstract contract Check {
    Vm internal constant vm = Vm(0x7109709ECfa91a80626fF3989D68f67F5b1DD12D);

    error Unequal(string what, uint256 got, uint256 expected);
    error UnequalAddress(string what, address got, address expected);
    error UnequalBytes(string what, bytes32 got, bytes32 expected);
    error TooMuch(string what, uint256 got, uint256 most);
    error NotSo(string what);

    function eq(uint256 got, uint256 expected, string memory what) internal pure {
        if (got != expected) revert Unequal(what, got, expected);
    }

    function eq(address got, address expected, string memory what) internal pure {
        if (got != expected) revert UnequalAddress(what, got, expected);
    }

    function eq(bytes32 got, bytes32 expected, string memory what) internal pure {
        if (got != expected) revert UnequalBytes(what, got, expected);
    }

    function atMost(uint256 got, uint256 most, string memory what) internal pure {
        if (got > most) revert TooMuch(what, got, most);
    }

    function ok(bool so, string memory what) internal pure {
        if (!so) revert NotSo(what);
    }

    /// @dev `value` moved into [low, high].
    function within(uint256 value, uint256 low, uint256 high) internal pure returns (uint256) {
        if (value >= low && value <= high) return value;
        uint256 size = high - low + 1;
        return size == 0 ? value : low + value % size;
    }
}
