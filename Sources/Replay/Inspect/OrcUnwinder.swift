import VMCore

/// Unwinds the stack of a Linux kernel exactly, with its own ORC tables: no frame pointers, no guesses.
///
/// Source: Linux, Documentation/arch/x86/orc-unwinder.rst; arch/x86/kernel/unwind_orc.c for what the entries mean.
struct OrcUnwinder {
    let table: OrcTable
    /// How far the kernel lies from where it was linked.
    let slide: UInt64
    /// Reads 8 bytes of the guest's memory at a linear address.
    let word: (UInt64) -> UInt64?

    /// Offsets in `struct pt_regs`. Source: Linux, arch/x86/include/asm/ptrace.h.
    private enum Registers {
        static let r13: UInt64 = 16
        static let rbp: UInt64 = 32
        static let r10: UInt64 = 56
        static let rdx: UInt64 = 96
        static let rdi: UInt64 = 112
        static let rip: UInt64 = 128
    }

    /// Offsets in what the processor pushes. Source: Intel SDM Vol. 3A, 6.14.2.
    private enum InterruptFrame {
        static let cs: UInt64 = 8
        static let rsp: UInt64 = 24
    }

    /// What is known of a frame. Of the registers that only some code keeps its stack in, RBP alone lives through calls.
    private struct Frame {
        var rip: UInt64
        var rsp: UInt64
        var rbp: UInt64
        var r10: UInt64?
        var r13: UInt64?
        var rdi: UInt64?
        var rdx: UInt64?
        /// Whether the next instruction is at `rip`; else a call ends there.
        var isExact = true
    }

    enum End: Equatable {
        /// At the bottom of the stack, or where user mode was left.
        case complete
        /// Where the tables don't know on, with the stack pointer there.
        case lost(rsp: UInt64)
    }

    /// Follows the stack from the state of a processor in kernel mode, at most `limit` frames.
    func unwind(_ core: CoreRegisters, limit: Int) -> (frames: [Backtrace.Frame], end: End) {
        let general = core.general
        var frames: [Backtrace.Frame] = []
        var frame = Frame(rip: general.rip, rsp: general.rsp, rbp: general.rbp, r10: general.r10, r13: general.r13,
                          rdi: general.rdi, rdx: general.rdx)
        while frames.count < limit {
            let place = (frame.isExact ? frame.rip : frame.rip &- 1) &- slide
            guard let entry = table.entry(at: place), entry.kind != .undefined else { return (frames, .lost(rsp: frame.rsp)) }
            if entry.kind == .end { return (frames, .complete) }
            guard let (next, isUser) = caller(of: frame, entry) else { return (frames, .lost(rsp: frame.rsp)) }
            // A stack that doesn't get shorter is damaged. Interrupts change to another one.
            if entry.kind == .call, next.rsp <= frame.rsp { return (frames, .lost(rsp: frame.rsp)) }
            frames.append(Backtrace.Frame(address: next.rip, kind: isUser ? .user : next.isExact ? .interrupted : .call))
            if isUser { return (frames, .complete) }
            frame = next
        }
        return (frames, .complete)
    }

    private func caller(of frame: Frame, _ entry: OrcTable.Entry) -> (Frame, isUser: Bool)? {
        guard let sp = stackPointer(of: frame, entry) else { return nil }
        var next = frame
        next.isExact = entry.isSignal
        var isUser = false
        switch entry.kind {
        case .undefined, .end: return nil
        case .call:
            guard let rip = word(sp &- 8) else { return nil }
            (next.rip, next.rsp) = (rip, sp)
            (next.r10, next.r13, next.rdi, next.rdx) = (nil, nil, nil, nil)
        case .registers, .interruptFrame:
            let pushed = entry.kind == .registers ? sp &+ Registers.rip : sp
            guard let rip = word(pushed), let rsp = word(pushed &+ InterruptFrame.rsp),
                let cs = word(pushed &+ InterruptFrame.cs)
            else { return nil }
            (next.rip, next.rsp) = (rip, rsp)
            isUser = cs & 3 == 3
            if entry.kind == .registers {
                guard let rbp = word(sp &+ Registers.rbp) else { return nil }
                next.rbp = rbp
                next.r10 = word(sp &+ Registers.r10)
                next.r13 = word(sp &+ Registers.r13)
                next.rdi = word(sp &+ Registers.rdi)
                next.rdx = word(sp &+ Registers.rdx)
            }
        }
        switch entry.bp {
        case .undefined: break
        case .previousSP, .rbp:
            let base = entry.bp == .previousSP ? sp : frame.rbp
            guard let rbp = word(base &+ Self.offset(entry.bpOffset)) else { return nil }
            next.rbp = rbp
        default: return nil
        }
        return (next, isUser)
    }

    /// The stack pointer behind the frame.
    private func stackPointer(of frame: Frame, _ entry: OrcTable.Entry) -> UInt64? {
        let offset = Self.offset(entry.spOffset)
        switch entry.sp {
        case .rsp: return frame.rsp &+ offset
        case .rbp: return frame.rbp &+ offset
        case .r10: return frame.r10.map { $0 &+ offset }
        case .r13: return frame.r13.map { $0 &+ offset }
        case .rdi: return frame.rdi.map { $0 &+ offset }
        case .rdx: return frame.rdx.map { $0 &+ offset }
        case .atRSP: return word(frame.rsp).map { $0 &+ offset }
        case .atRBP: return word(frame.rbp &+ offset)
        case .undefined, .previousSP: return nil
        }
    }

    private static func offset(_ value: Int16) -> UInt64 { UInt64(bitPattern: Int64(value)) }
}
