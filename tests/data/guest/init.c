/*
 * The only program of the guest of the tests: loads its drivers, says that it is ready, and then follows what a host
 * asks of a guest. The kernel itself does what is asked of the balloon and of disks and nics that are to go.
 *
 * A line that comes over the console is a command. It is said back before it is done, and again after that:
 *
 *     write PATH TEXT     writes a text into a file or a device
 *     hold PATH           opens a device and never closes it
 *     out PORT VALUE      writes a byte, or a word, to a port of the machine; both in hexadecimal
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In the order of their names, in which each stands after those that it needs. */
static void load_drivers(void)
{
    struct dirent **drivers;
    int count = scandir("/drivers", &drivers, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[300];
        if (drivers[i]->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/drivers/%s", drivers[i]->d_name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (syscall(SYS_finit_module, file, "", 0) != 0)
            printf("guest: %s: %m\n", path);
        close(file);
    }
}

/* The power button is one of the few input devices; the others never send its key. */
static int open_inputs(struct pollfd *inputs, int room)
{
    int count = 0;
    for (int number = 0; number < 32 && count < room; number++) {
        char path[40];
        snprintf(path, sizeof path, "/dev/input/event%d", number);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0)
            inputs[count++] = (struct pollfd){.fd = file, .events = POLLIN};
    }
    return count;
}

/* A CPU that was plugged in does nothing until somebody asks the kernel for it. */
static void follow_uevent(int uevents)
{
    char message[4096], path[4200];
    ssize_t length = recv(uevents, message, sizeof message - 1, 0);
    if (length <= 0)
        return;
    message[length] = 0;
    if (strncmp(message, "add@/devices/system/cpu/cpu", 27) != 0)
        return;
    snprintf(path, sizeof path, "/sys%s/online", message + strlen("add@"));
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, "1", 1) != 1)
        printf("guest: %s: %m\n", path);
    close(file);
}

static void follow_command(void)
{
    char line[200];
    ssize_t length = read(STDIN_FILENO, line, sizeof line - 1);
    if (length <= 0)
        return;
    line[length] = 0;
    line[strcspn(line, "\n")] = 0;
    printf("guest: does %s\n", line);
    char done[sizeof line];
    strcpy(done, line);
    char *verb = strtok(line, " ");
    char *of = strtok(NULL, " ");
    char *what = strtok(NULL, "");
    if (verb && of && strcmp(verb, "hold") == 0) {
        if (open(of, O_RDWR | O_CLOEXEC) < 0)
            printf("guest: %s: %m\n", of);
    } else if (verb && of && what && strcmp(verb, "write") == 0) {
        /* What is only in memory would be no news to the host. */
        int file = open(of, O_WRONLY | O_CLOEXEC | O_SYNC);
        if (file < 0 || write(file, what, strlen(what)) < 0)
            printf("guest: %s: %m\n", of);
        close(file);
    } else if (verb && of && what && strcmp(verb, "out") == 0) {
        unsigned long port = strtoul(of, NULL, 16), value = strtoul(what, NULL, 16);
        if (ioperm(port, 2, 1) != 0)
            printf("guest: %s: %m\n", of);
        else if (value > 0xff)
            outw(value, port);
        else
            outb(value, port);
    } else {
        puts("guest: does not know that");
    }
    printf("guest: did %s\n", done);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int uevents = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    if (uevents < 0 || bind(uevents, (struct sockaddr *)&kernel, sizeof kernel) != 0)
        printf("guest: uevents: %m\n");
    load_drivers();
    struct pollfd waiting[16] = {{.fd = uevents, .events = POLLIN}, {.fd = STDIN_FILENO, .events = POLLIN}};
    int count = 2 + open_inputs(waiting + 2, 14);
    puts("guest: ready");
    for (;;) {
        poll(waiting, count, -1);
        if (waiting[0].revents)
            follow_uevent(uevents);
        if (waiting[1].revents)
            follow_command();
        for (int i = 2; i < count; i++) {
            struct input_event event;
            if (!waiting[i].revents || read(waiting[i].fd, &event, sizeof event) != sizeof event)
                continue;
            if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
                puts("guest: powers off");
                reboot(RB_POWER_OFF);
            }
        }
    }
}
