// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";

/// @title Hivemint Credit (HMC)
/// @notice Burned when paid work is settled, minted for settled work and for donated work; by nobody else, never else.
interface ICreditToken is IERC20, IERC20Permit {
    /// @notice The caller is not a contract that may do this.
    error NotMinter(address caller);

    /// @notice Makes `amount` new credits for `to`. Only Settlement and Emission.
    function mint(address to, uint256 amount) external;

    /// @notice Destroys `amount` of the caller's credits. Only Settlement, from the escrow that it holds.
    function burn(uint256 amount) external;

    /// @notice The escrow and settlement contract, a minter and the only burner.
    function SETTLEMENT() external view returns (address);

    /// @notice The lane-B contract, a minter.
    function EMISSION() external view returns (address);
}
