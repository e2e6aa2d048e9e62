"""Devices other than this machine: boards through ssh, and farms of TVM's RPC servers."""
