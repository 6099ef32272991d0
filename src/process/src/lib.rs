//! What every Portolan process needs: logs, metrics, admin server, tasks, shutdown.
