// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {ICreditToken} from "./interfaces/ICreditToken.sol";

/// @title Hivemint Credit (HMC), 18 decimals
/// @dev No owner, no premint, no proxy: the minters are fixed by the constructor.
contract CreditToken is ERC20, ERC20Permit, ICreditToken {
    /// @inheritdoc ICreditToken
    address public immutable SETTLEMENT;
    /// @inheritdoc ICreditToken
    address public immutable EMISSION;

    constructor(address settlement, address emission) ERC20("Hivemint Credit", "HMC") ERC20Permit("Hivemint Credit") {
        SETTLEMENT = settlement;
        EMISSION = emission;
    }

    /// @inheritdoc ICreditToken
    function mint(address to, uint256 amount) external {
        if (msg.sender != SETTLEMENT && msg.sender != EMISSION) revert NotMinter(msg.sender);
        _mint(to, amount);
    }

    /// @inheritdoc ICreditToken
    function burn(uint256 amount) external {
        if (msg.sender != SETTLEMENT) revert NotMinter(msg.sender);
        _burn(msg.sender, amount);
    }

    /// @inheritdoc IERC20Permit
    function nonces(address owner) public view override(ERC20Permit, IERC20Permit) returns (uint256) {
        return super.nonces(owner);
    }
}
