// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title The other contracts of a deployment, as one of them names them
/// @dev Each contract answers those that it holds.
interface IBound {
    function SETTLEMENT() external view returns (address);
    function PARAMETERS() external view returns (address);
    function REGISTRY() external view returns (address);
    function TOKEN() external view returns (address);
}
