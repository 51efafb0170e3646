/* Shims for what Swift can't import: variadic calls, ioctl numbers made by macros, anonymous unions of kvm_run.
 * No logic lives here. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* lseek(2) on a memory file; glibc hides the names without _GNU_SOURCE, which would change other headers' types. */
static const int ckvm_SEEK_DATA = 3;
static const int ckvm_SEEK_HOLE = 4;

static inline int ckvm_errno(void) { return errno; }

/* ---- ioctl: an integer or a pointer argument -------------------------------------------------------------------- */

static inline int ckvm_ioctl(int fd, unsigned long request, unsigned long argument) {
    return ioctl(fd, request, argument);
}
static inline int ckvm_ioctl_ptr(int fd, unsigned long request, void *argument) {
    return ioctl(fd, request, argument);
}
static inline int ckvm_open(const char *path, int flags) { return open(path, flags | O_CLOEXEC); }
static inline int ckvm_run(int fd) { return ioctl(fd, KVM_RUN, 0); }

#define CKVM_REQUEST(name) static const unsigned long ckvm_##name = KVM_##name
CKVM_REQUEST(GET_API_VERSION);
CKVM_REQUEST(CREATE_VM);
CKVM_REQUEST(CHECK_EXTENSION);
CKVM_REQUEST(GET_VCPU_MMAP_SIZE);
CKVM_REQUEST(GET_SUPPORTED_CPUID);
CKVM_REQUEST(CREATE_VCPU);
CKVM_REQUEST(SET_USER_MEMORY_REGION);
CKVM_REQUEST(SET_TSS_ADDR);
CKVM_REQUEST(ENABLE_CAP);
CKVM_REQUEST(X86_SET_MSR_FILTER);
CKVM_REQUEST(GET_DIRTY_LOG);
CKVM_REQUEST(CLEAR_DIRTY_LOG);
CKVM_REQUEST(GET_REGS);
CKVM_REQUEST(SET_REGS);
CKVM_REQUEST(GET_SREGS);
CKVM_REQUEST(SET_SREGS);
CKVM_REQUEST(GET_XSAVE);
CKVM_REQUEST(SET_XSAVE);
CKVM_REQUEST(GET_XCRS);
CKVM_REQUEST(SET_XCRS);
CKVM_REQUEST(GET_MSRS);
CKVM_REQUEST(SET_MSRS);
CKVM_REQUEST(GET_DEBUGREGS);
CKVM_REQUEST(SET_DEBUGREGS);
CKVM_REQUEST(GET_VCPU_EVENTS);
CKVM_REQUEST(SET_VCPU_EVENTS);
CKVM_REQUEST(SET_MP_STATE);
CKVM_REQUEST(SET_CPUID2);
CKVM_REQUEST(SET_GUEST_DEBUG);
CKVM_REQUEST(INTERRUPT);
CKVM_REQUEST(NMI);

/* ---- kvm_run: accessors for the anonymous unions ---------------------------------------------------------------- */

static inline uint8_t ckvm_io_direction(const struct kvm_run *r) { return r->io.direction; }
static inline uint8_t ckvm_io_size(const struct kvm_run *r) { return r->io.size; }
static inline uint16_t ckvm_io_port(const struct kvm_run *r) { return r->io.port; }
static inline uint32_t ckvm_io_count(const struct kvm_run *r) { return r->io.count; }
static inline uint64_t ckvm_io_data_offset(const struct kvm_run *r) { return r->io.data_offset; }

static inline uint64_t ckvm_mmio_address(const struct kvm_run *r) { return r->mmio.phys_addr; }
static inline uint32_t ckvm_mmio_length(const struct kvm_run *r) { return r->mmio.len; }
static inline uint8_t ckvm_mmio_is_write(const struct kvm_run *r) { return r->mmio.is_write; }
static inline uint64_t ckvm_mmio_data(const struct kvm_run *r) {
    uint64_t value;
    memcpy(&value, r->mmio.data, sizeof value);
    return value;
}
static inline void ckvm_mmio_set_data(struct kvm_run *r, uint64_t value) {
    memcpy(r->mmio.data, &value, sizeof value);
}

static inline uint32_t ckvm_msr_index(const struct kvm_run *r) { return r->msr.index; }
static inline uint64_t ckvm_msr_data(const struct kvm_run *r) { return r->msr.data; }
static inline void ckvm_msr_answer(struct kvm_run *r, uint64_t value, uint8_t fault) {
    r->msr.data = value;
    r->msr.error = fault;
}

static inline uint32_t ckvm_internal_suberror(const struct kvm_run *r) { return r->internal.suberror; }
static inline uint64_t ckvm_emulation_flags(const struct kvm_run *r) { return r->emulation_failure.flags; }
static inline uint8_t ckvm_emulation_size(const struct kvm_run *r) { return r->emulation_failure.insn_size; }
static inline uint8_t ckvm_emulation_byte(const struct kvm_run *r, unsigned i) {
    return i < 15 ? r->emulation_failure.insn_bytes[i] : 0;
}
static inline uint64_t ckvm_fail_entry_reason(const struct kvm_run *r) {
    return r->fail_entry.hardware_entry_failure_reason;
}

static inline struct kvm_regs *ckvm_sync_regs(struct kvm_run *r) { return &r->s.regs.regs; }
static inline struct kvm_sregs *ckvm_sync_sregs(struct kvm_run *r) { return &r->s.regs.sregs; }

static inline struct kvm_vcpu_events *ckvm_sync_events(struct kvm_run *r) { return &r->s.regs.events; }

/* immediate_exit is written by another thread or a signal handler. */
static inline void ckvm_set_immediate_exit(struct kvm_run *r, uint8_t on) {
    __atomic_store_n(&r->immediate_exit, on, __ATOMIC_SEQ_CST);
}

/* ---- the kick: a timer or a thread sends a signal to the vCPU thread; the handler makes KVM_RUN return ----------- */

/* What immediate_exit is set to: any value but 0 makes KVM_RUN return. */
enum { CKVM_KICKED_BY_TIMER = 1, CKVM_KICKED_BY_THREAD = 2 };

static inline void ckvm_kick_handler(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    if (info->si_code != SI_TIMER && info->si_code != SI_QUEUE) return;
    struct kvm_run *run = (struct kvm_run *)info->si_value.sival_ptr;
    __atomic_fetch_or(&run->immediate_exit, info->si_code == SI_TIMER ? CKVM_KICKED_BY_TIMER : CKVM_KICKED_BY_THREAD,
                      __ATOMIC_SEQ_CST);
}
/* Takes back what the timer, and nothing else, has set. Returns whether it had. */
static inline int ckvm_take_timer_kick(struct kvm_run *run) {
    uint8_t expected = CKVM_KICKED_BY_TIMER;
    return __atomic_load_n(&run->immediate_exit, __ATOMIC_RELAXED) == expected
        && __atomic_compare_exchange_n(&run->immediate_exit, &expected, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}
static inline int ckvm_install_kick_handler(int signal) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = ckvm_kick_handler;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    return sigaction(signal, &action, NULL);
}
/* Threads of a dispatch pool block most signals. */
static inline void ckvm_unblock(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}
static inline int ckvm_timer_create(int signal, struct kvm_run *run, timer_t *timer) {
    struct sigevent event;
    memset(&event, 0, sizeof event);
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = signal;
    event.sigev_value.sival_ptr = run;
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    return timer_create(CLOCK_MONOTONIC, &event, timer);
}
static inline int ckvm_kick(pid_t thread, int signal, struct kvm_run *run) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_code = SI_QUEUE;
    info.si_value.sival_ptr = run;
    return (int)syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, signal, &info);
}
static inline pid_t ckvm_gettid(void) { return (pid_t)syscall(SYS_gettid); }
static inline int ckvm_sigrtmin(void) { return SIGRTMIN; }

static inline uint64_t ckvm_monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
static inline uint64_t ckvm_thread_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}
static inline int ckvm_memfd(const char *name) { return (int)syscall(SYS_memfd_create, name, 1u /* MFD_CLOEXEC */); }
static inline void ckvm_ignore_signal(int signal) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = SIG_IGN;
    sigaction(signal, &action, NULL);
}
static inline int ckvm_create(const char *path) {
    return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}
static inline int ckvm_ppoll(struct pollfd *fds, unsigned long count, uint64_t ns) {
    struct timespec t = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};
    return (int)syscall(SYS_ppoll, fds, count, &t, NULL, 8);
}
static inline void ckvm_store(uint32_t *p, uint32_t value) { __atomic_store_n(p, value, __ATOMIC_SEQ_CST); }
static inline uint32_t ckvm_load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
