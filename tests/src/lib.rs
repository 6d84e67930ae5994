//! System tests: all services, real sockets, real models.
