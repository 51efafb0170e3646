/* kvmloop: the least that a program on /dev/kvm can do, as the yardstick for vmrr's exit rate.
 *
 *     kvmloop IMAGE
 *
 * Loads a flat real-mode image at 0x7C00, runs it from there, answers each port read with a constant and each port
 * write with nothing, until the guest writes to the debug-exit port 0xF4. Prints: exits, seconds.
 *
 * Nothing is here that costs time: no devices, no clock, no CPUID, no signals, no interrupt window. */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { LOAD_ADDRESS = 0x7C00, MEMORY_BYTES = 1 << 20, DEBUG_EXIT_PORT = 0xF4, ANSWER = 0x20 };

static int control(int fd, unsigned long request, const char *name, void *argument) {
    int result = ioctl(fd, request, argument);
    if (result < 0) err(69, "%s", name);
    return result;
}
#define CONTROL(fd, request, argument) control(fd, request, #request, (void *)(uintptr_t)(argument))

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint8_t *load(const char *path) {
    uint8_t *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || read(file, memory + LOAD_ADDRESS, MEMORY_BYTES - LOAD_ADDRESS) <= 0) err(64, "%s", path);
    close(file);
    return memory;
}

static void start_at(int vcpu, uint64_t rip) {
    struct kvm_sregs special;
    CONTROL(vcpu, KVM_GET_SREGS, &special);
    special.cs.base = 0;
    special.cs.selector = 0;
    CONTROL(vcpu, KVM_SET_SREGS, &special);
    struct kvm_regs registers = {.rip = rip, .rsp = rip, .rflags = 2};
    CONTROL(vcpu, KVM_SET_REGS, &registers);
}

/* Returns the number of exits, the last one among them. */
static uint64_t run_to_debug_exit(int vcpu, struct kvm_run *run) {
    for (uint64_t exits = 1;; exits++) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0) err(1, "KVM_RUN");
        if (run->exit_reason != KVM_EXIT_IO) errx(1, "exit reason %u", run->exit_reason);
        if (run->io.direction == KVM_EXIT_IO_IN)
            memset((uint8_t *)run + run->io.data_offset, ANSWER, (size_t)run->io.size * run->io.count);
        else if (run->io.port == DEBUG_EXIT_PORT)
            return exits;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) errx(64, "usage: kvmloop IMAGE");
    uint8_t *memory = load(argv[1]);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) err(69, "/dev/kvm");
    int vm = CONTROL(kvm, KVM_CREATE_VM, 0);
    CONTROL(vm, KVM_SET_TSS_ADDR, 0xFFFBD000);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY_BYTES, .userspace_addr = (uintptr_t)memory};
    CONTROL(vm, KVM_SET_USER_MEMORY_REGION, &region);
    int vcpu = CONTROL(vm, KVM_CREATE_VCPU, 0);
    size_t size = (size_t)CONTROL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED) err(1, "mmap kvm_run");
    start_at(vcpu, LOAD_ADDRESS);

    double start = now();
    uint64_t exits = run_to_debug_exit(vcpu, run);
    printf("%llu %.6f\n", (unsigned long long)exits, now() - start);
    return 0;
}
