/*
 * The first process of every sandbox and of every node: it holds the namespaces open.
 *
 * As process 1 it inherits whatever loses its parent. Ignoring SIGCHLD makes the kernel reap those
 * at once, so nothing has to be waited for here.
 */
#include <signal.h>
#include <unistd.h>

static void stop(int signal) {
	(void)signal;
	_exit(0);
}

int main(void) {
	signal(SIGCHLD, SIG_IGN);
	signal(SIGINT, stop);
	signal(SIGTERM, stop);
	for (;;)
		pause();
}
