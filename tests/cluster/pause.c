/* What every pod's sandbox runs: nothing, until it is told to stop. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) { _exit(signal == SIGKILL); }

int main(void) {
    signal(SIGTERM, end);
    signal(SIGINT, end);
    for (;;)
        pause();
}
