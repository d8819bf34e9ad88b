/* Resolves every name that ends in .test to the address in the file $RESOLVE_TO, as that is at the time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    const char *path = getenv("RESOLVE_TO");
    size_t length = name ? strlen(name) : 0;
    char address[64] = "";
    if (path && length > 5 && strcmp(name + length - 5, ".test") == 0) {
        FILE *file = fopen(path, "r");
        if (!file || !fgets(address, sizeof address, file))
            return EAI_AGAIN;
        fclose(file);
        address[strcspn(address, "\n")] = 0;
        name = address;
    }
    return real(name, service, hints, found);
}
