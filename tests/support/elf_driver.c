/* Opens, closes and looks up what the lines of its input say, and tells what each library then is to the others. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct use { const char *label; int kind; void *(*address)(void); int (*call)(void); int bound; };
static struct use *entered[256];
static int order[4096], count, gone[4096], left;

void enter(int number, struct use *uses) { entered[number] = uses; order[count++] = number; }
void leave(int number, struct use *uses) {
    if (entered[number] == uses) entered[number] = NULL;
    gone[left++] = number;
}

static void touch(int number, struct use *use) {
    int value = -1;
    if (use->kind != 'c') {
        void *address = use->address();
        if (address) value = use->kind == 'p' ? ((int (*)(void))address)() : *(int *)address;
    } else {
        if (!use->bound) {
            int status;
            pid_t child = fork();
            if (!child) { use->call(); _exit(0); }
            waitpid(child, &status, 0);
            use->bound = WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
        if (!use->bound) { printf("  %d %s unresolved\n", number, use->label); return; }
        value = use->call();
    }
    printf("  %d %s %d\n", number, use->label, value);
}

/* What each library reaches; if quiet, those alone that have just been constructed. */
static void report(int first, int first_left, int quiet) {
    printf(" constructed");
    for (int i = first; i < count; i++) printf(" %d", order[i]);
    printf("\n");
    if (left > first_left) {
        printf(" destroyed");
        for (int i = first_left; i < left; i++) printf(" %d", gone[i]);
        printf("\n");
    }
    for (int i = 0; i < 256; i++) {
        int fresh = 0;
        for (int n = first; n < count; n++) fresh |= order[n] == i;
        if (quiet && !fresh) continue;
        for (struct use *use = entered[i]; use && use->label; use++) { touch(i, use); fflush(stdout); }
    }
}

static int flag(const char *name) {
    if (!strcmp(name, "LAZY")) return RTLD_LAZY;
    if (!strcmp(name, "NOW")) return RTLD_NOW;
    if (!strcmp(name, "GLOBAL")) return RTLD_GLOBAL;
    if (!strcmp(name, "NOLOAD")) return RTLD_NOLOAD;
    if (!strcmp(name, "NODELETE")) return RTLD_NODELETE;
    if (!strcmp(name, "DEEPBIND")) return RTLD_DEEPBIND;
    return RTLD_LOCAL;
}

int main(void) {
    static void *slots[64];
    void *global = dlopen(NULL, RTLD_LAZY);
    char line[4096];
    printf("started\n");
    report(0, 0, 0);
    while (fgets(line, sizeof line, stdin)) {
        char *what = strtok(line, " \n"), *name = strtok(NULL, " \n");
        int slot = atoi(strtok(NULL, " \n")), flags = 0, first = count, first_left = left, quiet = 0;
        for (char *word; (word = strtok(NULL, " \n"));) {
            flags |= flag(word);
            quiet |= !strcmp(word, "QUIET");
        }
        if (!strcmp(what, "open")) {
            slots[slot] = dlopen(name, flags);
            printf("open %s %s\n", name, slots[slot] ? "ok" : "failed");
            fflush(stdout);
            report(first, first_left, quiet);
            continue;
        }
        if (!strcmp(what, "close")) {
            printf("close %d %s\n", slot, !slots[slot] ? "no handle" : dlclose(slots[slot]) ? "failed" : "ok");
            slots[slot] = NULL;
            fflush(stdout);
            report(first, first_left, quiet);
            continue;
        }
        if (slot >= 0 && !slots[slot]) { printf("%s no handle\n", name); continue; }
        char symbol[64];
        snprintf(symbol, sizeof symbol, "%s%s", *what == 'd' ? "d_" : "", name);
        /* RTLD_DEFAULT (-2) searches the same, but keeps for good what it finds for a program. */
        void *found = dlsym(slot == -1 ? global : slot < 0 ? RTLD_DEFAULT : slots[slot], symbol);
        if (!found) printf("%s none\n", symbol);
        else printf("%s %d\n", symbol, *what == 'd' ? *(int *)found : ((int (*)(void))found)());
    }
    fflush(stdout);
    _exit(0);
}
