import CKVM

/// The engine on `/dev/kvm`, with nothing of the kernel's own devices: no interrupt controller, no timer, no clock.
///
/// It belongs to the thread that makes it; only `kicker` may be used from others.
public final class KVMEngine: Engine {
    public let name = "kvm"
    public let capabilities: EngineCapabilities
    public let memory: GuestMemory
    private let model: CPUModel
    public var profile: ProcessorProfile { model.profile }

    let vm: KVMVirtualMachine
    let vcpu: KVMVirtualCPU
    private let hasXSave: Bool
    private let xsaveArea = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)

    /// What the reserved ports stand for.
    public var trapped: TrappedInstructions = []
    private let cpuid: CPUIDTable

    /// Whether the guest stands within the instruction of the last exit, which entering it again finishes.
    private var isPending = false
    /// Whether the shared area holds the registers as they are. It does after a KVM_RUN that was asked for them: at
    /// breakpoints and steps, where they are always read. An ioctl more costs up to 10 µs on nested KVMs.
    private var isSynced = false
    public var wantsRegisters = false
    /// The debug registers as they were read since the guest last ran.
    private var debugRegisters: kvm_debugregs?
    /// Whether an interrupt or NMI that was queued may still wait for its delivery.
    private var mayHaveQueuedEvent = false
    private var debugMode = GuestDebug.off
    private var tracksWrites = false
    private var slots: [(region: MemoryLayoutMap.Region, bitmap: UnsafeMutableBufferPointer<UInt64>)] = []
    /// Whether the soft engine executes the instructions that this KVM can't.
    var assistsEmulation = true
    public private(set) var assistedInstructions: UInt64 = 0
    private var emulator: SoftEngine?
    private var timer: timer_t?
    private var armed: Nanoseconds?

    /// KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS
    private static let syncedSets: UInt64 = 7

    /// The signal that ends KVM_RUN. Real-time signals are delivered with the pointer that the handler needs.
    static let kickSignal = ckvm_sigrtmin() + 2

    public init(system: KVMSystem, memory: GuestMemory, model: CPUModel, capabilities: EngineCapabilities)
        throws(HostError) {
        self.memory = memory
        self.capabilities = capabilities
        self.model = model
        cpuid = CPUIDTable(model)
        hasXSave = model.hasXSave
        do throws(SystemCallError) {
            vm = try system.createVM()
            vcpu = try Self.setUp(system, vm, model)
            for (i, region) in memory.map.regions.enumerated() {
                try vm.setMemory(slot: i, at: region.address, host: memory.base + Int(region.fileOffset),
                                 bytes: Int(region.bytes), logDirty: false)
                let words = (Int(region.bytes) / pageSize + 63) / 64
                let bitmap = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: words)
                bitmap.initialize(repeating: 0)
                slots.append((region, bitmap))
            }
            if ckvm_install_kick_handler(Self.kickSignal) != 0 { throw SystemCallError("sigaction") }
            ckvm_unblock(Self.kickSignal)
            var made: timer_t?
            if ckvm_timer_create(Self.kickSignal, vcpu.run, &made) != 0 { throw SystemCallError("timer_create") }
            timer = made
        } catch {
            throw .call(error)
        }
    }

    deinit {
        if let timer { timer_delete(timer) }
        for slot in slots { slot.bitmap.deallocate() }
        xsaveArea.deallocate()
    }

    private static func setUp(_ system: KVMSystem, _ vm: KVMVirtualMachine, _ model: CPUModel)
        throws(SystemCallError) -> KVMVirtualCPU {
        // On Intel processors without unrestricted guests the kernel needs three pages for its own use.
        try vm.descriptor.control("KVM_SET_TSS_ADDR", ckvm_SET_TSS_ADDR, 0xFFFB_D000)
        // All reasons: filtered, unknown and invalid MSR accesses come to the monitor.
        try vm.enable(KVM_CAP_X86_USER_SPACE_MSR, name: "KVM_CAP_X86_USER_SPACE_MSR", 7)
        try vm.setMSRFilter(allowed: [0x174...0x176, 0x277...0x277, 0xC000_0080...0xC000_0103])
        if system.check(KVM_CAP_EXIT_ON_EMULATION_FAILURE) > 0 {
            try vm.enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, name: "KVM_CAP_EXIT_ON_EMULATION_FAILURE", 1)
        }
        let vcpu = try vm.createVCPU(id: 0, mapSize: try system.vcpuMapSize())
        if system.check(KVM_CAP_ENFORCE_PV_FEATURE_CPUID) > 0 {
            var request = kvm_enable_cap()
            request.cap = UInt32(KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
            request.args.0 = 1
            try vcpu.descriptor.control("KVM_ENABLE_CAP(KVM_CAP_ENFORCE_PV_FEATURE_CPUID)", ckvm_ENABLE_CAP,
                                        updating: &request)
        }
        try vcpu.set(cpuid: model.answers)
        return vcpu
    }

    private var run: UnsafeMutablePointer<kvm_run> { vcpu.run }

    // MARK: Running

    public func enter(until stop: StopCondition) throws(HostError) -> Arrival {
        switch stop {
        case .none:
            try setDebug(.off)
            run.pointee.kvm_valid_regs = wantsRegisters ? Self.syncedSets : 0
            run.pointee.request_interrupt_window = 0
        case .window:
            try setDebug(.off)
            run.pointee.kvm_valid_regs = wantsRegisters ? Self.syncedSets : 0
            run.pointee.request_interrupt_window = 1
        case .step:
            run.pointee.kvm_valid_regs = Self.syncedSets
            try setDebug(.singleStep)
            run.pointee.request_interrupt_window = 0
        case .breakpoint(let address):
            run.pointee.kvm_valid_regs = Self.syncedSets
            run.pointee.request_interrupt_window = 0
            if let arrival = try passBreakpoint(address) { return arrival }
        }
        isPending = false
        if ckvm_take_timer_kick(run) != 0 { letRun() }
        while true {
            if let arrival = try runOnce() { return arrival }
        }
    }

    /// One KVM_RUN. Nil for exits that mean nothing to the guest.
    @inline(__always)
    private func runOnce() throws(HostError) -> Arrival? {
        isSynced = run.pointee.kvm_valid_regs != 0
        debugRegisters = nil
        if ckvm_run(vcpu.descriptor.rawValue) < 0 { return try interrupted() }
        switch Int32(bitPattern: run.pointee.exit_reason) {
        case KVM_EXIT_IO:
            isPending = true
            switch replacedInstruction() {
            case .cpuid: return try identify()
            case .rdtsc: return .exit(Exit(EventIdentity(kind: .timestamp, size: 8, address: 0)))
            case .rdtscp: return .exit(Exit(EventIdentity(kind: .timestamp, size: 8, address: 1)))
            case nil: return .exit(portExit())
            }
        case KVM_EXIT_MMIO:
            isPending = true
            return .exit(mmioExit())
        case KVM_EXIT_HLT: return .exit(Exit(EventIdentity(kind: .halt)))
        case KVM_EXIT_IRQ_WINDOW_OPEN: return .window
        case KVM_EXIT_DEBUG: return .debug
        case KVM_EXIT_SET_TPR: return .kicked
        case KVM_EXIT_INTR: return try interrupted()
        case KVM_EXIT_INTERNAL_ERROR: return try assist()
        default: return .exit(try rareExit())
        }
    }

    private func interrupted() throws(HostError) -> Arrival {
        let error = ckvm_errno()
        ckvm_set_immediate_exit(run, 0)
        guard error == EINTR || error == EAGAIN else { throw .call(SystemCallError("KVM_RUN", errno: error)) }
        return .kicked
    }

    /// The instruction that the port read of this exit stands for.
    @inline(__always)
    private func replacedInstruction() -> InstructionSites.Instruction? {
        guard !trapped.isEmpty, ckvm_io_direction(run) == 0, ckvm_io_size(run) == 4, ckvm_io_count(run) == 1 else { return nil }
        return InstructionSites.Instruction(port: ckvm_io_port(run), in: trapped)
    }

    /// Finishes the port read that stands for CPUID, then gives the guest what the model answers. That is no event: a replay
    /// has the model.
    private func identify() throws(HostError) -> Arrival {
        var before: kvm_regs
        do throws(SystemCallError) { before = try vcpu.registers() } catch { throw .call(error) }
        let wantsWindow = run.pointee.request_interrupt_window
        try finishPortRead { registers throws(SystemCallError) in
            let answer = cpuid.answer(UInt32(truncatingIfNeeded: before.rax), UInt32(truncatingIfNeeded: before.rcx),
                                      cr4: try vcpu.specialRegisters().cr4,
                                      xcr0: cpuid.allowedXCR0 == 1 ? 1 : try vcpu.extendedControl().xcrs.0.value, asModel: true)
            (registers.rax, registers.rbx) = (UInt64(answer.eax), UInt64(answer.ebx))
            (registers.rcx, registers.rdx) = (UInt64(answer.ecx), UInt64(answer.edx))
        }
        run.pointee.request_interrupt_window = wantsWindow
        return try arrivalAfterOwnWork()
    }

    private func portExit() -> Exit {
        let size = ckvm_io_size(run)
        let count = ckvm_io_count(run)
        let port = ckvm_io_port(run)
        let data = UnsafeMutableRawPointer(run) + Int(ckvm_io_data_offset(run))
        let isWrite = ckvm_io_direction(run) == 1
        var exit = Exit(EventIdentity(kind: isWrite ? .portWrite : .portRead, size: size, count: count,
                                      address: UInt64(port)))
        if count > 1 {
            exit.data = UnsafeMutableRawBufferPointer(start: data, count: Int(size) * Int(count))
        } else if isWrite {
            switch size {
            case 1: exit.value = UInt64(data.load(as: UInt8.self))
            case 2: exit.value = UInt64(data.load(as: UInt16.self))
            default: exit.value = UInt64(data.load(as: UInt32.self))
            }
        }
        return exit
    }

    private func mmioExit() -> Exit {
        let size = UInt8(truncatingIfNeeded: min(8, ckvm_mmio_length(run)))
        let isWrite = ckvm_mmio_is_write(run) != 0
        let identity = EventIdentity(kind: isWrite ? .mmioWrite : .mmioRead, size: size,
                                     address: ckvm_mmio_address(run))
        let mask = size == 8 ? UInt64.max : (1 << (8 * UInt64(size))) - 1
        return Exit(identity, value: isWrite ? ckvm_mmio_data(run) & mask : 0)
    }

    private func rareExit() throws(HostError) -> Exit {
        switch Int32(bitPattern: run.pointee.exit_reason) {
        case KVM_EXIT_X86_RDMSR:
            isPending = true
            let index = ckvm_msr_index(run)
            if index == 0x10 { return Exit(EventIdentity(kind: .timestamp, size: 8, address: 2)) }
            return Exit(EventIdentity(kind: .msrRead, size: 8, address: UInt64(index)))
        case KVM_EXIT_X86_WRMSR:
            isPending = true
            return Exit(EventIdentity(kind: .msrWrite, size: 8, address: UInt64(ckvm_msr_index(run))),
                        value: ckvm_msr_data(run))
        case KVM_EXIT_SHUTDOWN: return Exit(EventIdentity(kind: .shutdown))
        case KVM_EXIT_HYPERCALL: return Exit(EventIdentity(kind: .hypercall))
        case KVM_EXIT_FAIL_ENTRY: throw .failedEntry(reason: ckvm_fail_entry_reason(run))
        default: throw .unexpectedExit(reason: run.pointee.exit_reason)
        }
    }

    /// Has the soft engine execute the instruction that KVM could not, from the state before it. What it does is a function
    /// of that state, so a replay needs no record of it.
    ///
    /// - Throws: `HostError.cannotEmulate`, with nothing done, where the soft engine lacks the instruction as well, or where
    ///   it reaches a device.
    private func assist() throws(HostError) -> Arrival {
        let failure = try internalError()
        guard case .cannotEmulate = failure, assistsEmulation else { throw failure }
        let wantsWindow = run.pointee.request_interrupt_window
        let soft: SoftEngine
        if let emulator {
            soft = emulator
        } else {
            soft = try SoftEngine(memory: memory, model: model)
            soft.trapped = trapped
            emulator = soft
        }
        // Code that was decoded for an earlier instruction may have changed: KVM doesn't say what the guest writes.
        soft.core.dropAllCode()
        do throws(HostError) {
            try soft.setState(state())
            guard try soft.executeOne() == nil else { throw failure }
        } catch {
            if error.isLackOfSoftEngine { throw failure }
            throw error
        }
        soft.reportWrites { memory.noteMonitorWrite($0) }
        try setState(soft.state())
        run.pointee.request_interrupt_window = wantsWindow
        assistedInstructions += 1
        return try arrivalAfterOwnWork()
    }

    /// What to come back with when the monitor has executed an instruction in the guest's place. A kick may have got lost
    /// meanwhile, so that it is one unless the guest has arrived where it was to stop: entered again, it would pass that.
    private func arrivalAfterOwnWork() throws(HostError) -> Arrival {
        switch debugMode {
        case .off: .kicked
        case .singleStep: .debug
        case .breakpoint(let address): try registers().linearRIP == address ? .debug : .kicked
        }
    }

    private func internalError() throws(HostError) -> HostError {
        let state = try registers()
        guard ckvm_internal_suberror(run) == 1 else {  // KVM_INTERNAL_ERROR_EMULATION
            return .internalError(suberror: ckvm_internal_suberror(run), rip: state.general.rip)
        }
        let attached = ckvm_emulation_flags(run) & 1 != 0 ? Int(min(15, ckvm_emulation_size(run))) : 0
        return .cannotEmulate(rip: state.general.rip, bytes: (0..<attached).map { ckvm_emulation_byte(run, UInt32($0)) })
    }

    public func answer(_ exit: Exit) throws(HostError) {
        switch exit.identity.kind {
        case .portRead where exit.identity.count == 1:
            let data = UnsafeMutableRawPointer(run) + Int(ckvm_io_data_offset(run))
            switch exit.identity.size {
            case 1: data.storeBytes(of: UInt8(truncatingIfNeeded: exit.value), as: UInt8.self)
            case 2: data.storeBytes(of: UInt16(truncatingIfNeeded: exit.value), as: UInt16.self)
            default: data.storeBytes(of: UInt32(truncatingIfNeeded: exit.value), as: UInt32.self)
            }
        case .mmioRead:
            ckvm_mmio_set_data(run, exit.value)
        case .msrRead, .msrWrite:
            ckvm_msr_answer(run, exit.value, exit.identity.flags & EventIdentity.faulted)
        case .timestamp where exit.identity.address == 2:
            ckvm_msr_answer(run, exit.value, 0)
        case .timestamp:
            try answerTimestamp(exit)
        default:
            break
        }
    }

    /// Finishes the port read that stands for RDTSC or RDTSCP, then gives the guest all that these return.
    private func answerTimestamp(_ exit: Exit) throws(HostError) {
        try finishPortRead { registers throws(SystemCallError) in
            registers.rax = exit.value & 0xFFFF_FFFF
            registers.rdx = exit.value >> 32
            if exit.identity.address == 1 { registers.rcx = try vcpu.msrs([0xC000_0103])[0] & 0xFFFF_FFFF }
        }
    }

    /// Finishes the port read that stands for another instruction; `give` sets the registers that this one returns, RAX among them.
    private func finishPortRead(_ give: (inout kvm_regs) throws(SystemCallError) -> Void) throws(HostError) {
        guard try settle() == nil else { throw .unexpectedExit(reason: run.pointee.exit_reason) }
        do throws(SystemCallError) {
            var registers = try vcpu.registers()
            try give(&registers)
            try vcpu.set(registers)
            isSynced = false
        } catch {
            throw .call(error)
        }
    }

    public func settle() throws(HostError) -> Arrival? {
        guard isPending else { return nil }
        isPending = false
        run.pointee.request_interrupt_window = 0
        ckvm_set_immediate_exit(run, 1)
        defer { ckvm_set_immediate_exit(run, 0) }
        while true {
            guard let arrival = try runOnce() else { continue }
            switch arrival {
            // An instruction that was stepped into its exit ends with a trap of its own.
            case .kicked, .debug: return nil
            default: return arrival
            }
        }
    }

    // MARK: Debugging

    private func setDebug(_ mode: GuestDebug) throws(HostError) {
        guard mode != debugMode else { return }
        do throws(SystemCallError) { try vcpu.setGuestDebug(mode) } catch { throw .call(error) }
        debugMode = mode
    }

    /// Gets the guest off the instruction it stands at when that is the one to stop before, then sets the breakpoint.
    private func passBreakpoint(_ address: UInt64) throws(HostError) -> Arrival? {
        if let arrival = try settle() { return arrival }
        // A queued event leads away from the instruction by itself, and delivery mustn't meet a step: the trap flag
        // would be in the flags that it pushes.
        if try registers().linearRIP == address, try !hasDeliverableEvent() {
            if capabilities.resumeFlag {
                do throws(SystemCallError) {
                    var registers = try vcpu.registers()
                    registers.rflags |= RFlags.resume
                    try vcpu.set(registers)
                    isSynced = false
                } catch {
                    throw .call(error)
                }
            } else {
                try setDebug(.singleStep)
                while true {
                    guard let arrival = try runOnce() else { continue }
                    guard case .debug = arrival else { return arrival }
                    break
                }
                // A one-instruction loop is back where it was: that is the arrival.
                if try registers().linearRIP == address { return .debug }
            }
        }
        try setDebug(.breakpoint(address))
        return nil
    }

    /// Whether something is delivered before the guest's next instruction.
    private func hasDeliverableEvent() throws(HostError) -> Bool {
        guard mayHaveQueuedEvent else { return false }
        do throws(SystemCallError) {
            let events = isSynced ? ckvm_sync_events(run).pointee : try vcpu.events()
            mayHaveQueuedEvent = events.interrupt.injected != 0 || events.nmi.injected != 0 || events.nmi.pending != 0
                || events.exception.injected != 0 || events.exception.pending != 0
            let nmi = events.nmi.pending != 0 && events.nmi.masked == 0 && events.interrupt.shadow == 0
            return nmi || events.nmi.injected != 0 || events.interrupt.injected != 0 || events.exception.injected != 0
                || events.exception.pending != 0
        } catch { throw .call(error) }
    }

    // MARK: Interrupts

    public var isInterruptible: Bool { run.pointee.ready_for_interrupt_injection != 0 }

    public func mayHaveLostShadow() throws(HostError) -> Bool {
        guard capabilities.losesInterruptShadow, isInterruptible else { return false }
        var before = try registers()
        before.general.rip &-= 1
        return PageWalk(memory: memory, state: before).bytes(at: before.linearRIP, count: 1) == [0xFB]
    }

    public func isReadyForNMI() throws(HostError) -> Bool {
        do throws(SystemCallError) {
            let events = isSynced ? ckvm_sync_events(run).pointee : try vcpu.events()
            return events.nmi.masked == 0 && events.nmi.pending == 0 && events.nmi.injected == 0
                && events.interrupt.shadow == 0 && events.interrupt.injected == 0 && events.exception.injected == 0
                && events.exception.pending == 0
        } catch { throw .call(error) }
    }

    public var taskPriority: UInt8 {
        get { UInt8(truncatingIfNeeded: run.pointee.cr8) }
        set { run.pointee.cr8 = UInt64(newValue & 15) }
    }

    public func queueInterrupt(_ vector: UInt8) throws(HostError) {
        do throws(SystemCallError) { try vcpu.queueInterrupt(vector) } catch { throw .call(error) }
        run.pointee.ready_for_interrupt_injection = 0
        mayHaveQueuedEvent = true
        isSynced = false
    }

    public func queueNMI() throws(HostError) {
        do throws(SystemCallError) { try vcpu.queueNMI() } catch { throw .call(error) }
        mayHaveQueuedEvent = true
        isSynced = false
    }

    // MARK: State

    public func state() throws(HostError) -> CPUState {
        do throws(SystemCallError) {
            var state = CPUState()
            if isSynced {
                state.core = CoreRegisters(ckvm_sync_regs(run).pointee, ckvm_sync_sregs(run).pointee)
                state.events = EventState(ckvm_sync_events(run).pointee)
            } else {
                state.core = CoreRegisters(try vcpu.registers(), try vcpu.specialRegisters())
                state.events = EventState(try vcpu.events())
            }
            try vcpu.readRest(of: &state, debug: currentDebugRegisters(), withAVX: hasXSave,
                              keepsLastInstruction: model.profile.keepsLastInstruction, area: xsaveArea)
            state.control.cr8 = UInt64(taskPriority)
            // What a guest has written is read in full, but only the lower half is ever restored.
            if model.profile.halvesSysenter {
                for index in [0x175, 0x176] as [UInt32] {
                    guard let place = CPUState.msrIndices.firstIndex(of: index) else { continue }
                    state.msrs[place] &= 0xFFFF_FFFF
                }
            }
            return state
        } catch { throw .call(error) }
    }

    public func setState(_ state: CPUState) throws(HostError) {
        guard state.timestampCounter == nil else { throw .needsSoftEngine("a timestamp counter that counts instructions") }
        // An unfinished instruction would be finished on top of the new state.
        while try settle() != nil {}
        mayHaveQueuedEvent = true
        do throws(SystemCallError) {
            isSynced = false
            debugRegisters = nil
            try vcpu.restore(state, withAVX: hasXSave, area: xsaveArea)
            run.pointee.cr8 = state.control.cr8
        } catch { throw .call(error) }
        // Whether the guest can take an interrupt now is known only once the kernel has looked.
        isPending = true
        guard try settle() == nil else { throw .unexpectedExit(reason: run.pointee.exit_reason) }
    }

    public func registers() throws(HostError) -> CoreRegisters {
        do throws(SystemCallError) {
            var core = isSynced
                ? CoreRegisters(ckvm_sync_regs(run).pointee, ckvm_sync_sregs(run).pointee)
                : CoreRegisters(try vcpu.registers(), try vcpu.specialRegisters())
            core.control.cr8 = UInt64(taskPriority)
            return core
        } catch { throw .call(error) }
    }

    public func debugRegistersActive() throws(HostError) -> Bool {
        do throws(SystemCallError) { return try currentDebugRegisters().dr7 & 0xFF != 0 } catch { throw .call(error) }
    }

    private func currentDebugRegisters() throws(SystemCallError) -> kvm_debugregs {
        if let debugRegisters { return debugRegisters }
        let read = try vcpu.debugRegisters()
        debugRegisters = read
        return read
    }

    public func makeAssistant() throws(HostError) -> SoftEngine? {
        let engine = try SoftEngine(memory: memory, model: model)
        engine.trapped = trapped
        return engine
    }

    // MARK: Memory

    public func trackWrites() throws(HostError) {
        guard !tracksWrites else { return }
        do throws(SystemCallError) {
            for (i, slot) in slots.enumerated() {
                try vm.setMemory(slot: i, at: slot.region.address, host: memory.base + Int(slot.region.fileOffset),
                                 bytes: Int(slot.region.bytes), logDirty: true)
            }
        } catch { throw .call(error) }
        tracksWrites = true
    }

    /// From the bitmap, which the kernel clears as it is read. The vCPU stands still meanwhile, so there is nothing to
    /// gain from clearing it later (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), and the dirty ring takes longer: with 1,000 of
    /// 65,536 pages dirty the bitmap took 36 µs, cleared later 37, the ring with its reset 47; with 10,000 dirty it was
    /// 126, 121 and 253.
    public func takeWrittenPages(_ body: (Int) -> Void) throws(HostError) {
        precondition(tracksWrites, "writes are tracked from the start or not at all")
        for (i, slot) in slots.enumerated() {
            do throws(SystemCallError) { try vm.dirtyLog(slot: i, into: slot.bitmap) } catch { throw .call(error) }
            let first = Int(slot.region.fileOffset) / pageSize
            for w in slot.bitmap.indices {
                var word = slot.bitmap[w]
                while word != 0 {
                    body(first + 64 * w + word.trailingZeroBitCount)
                    word &= word - 1
                }
            }
        }
        for page in memory.takeMonitorWrites() { body(page) }
    }

    // MARK: Kicks

    public func armKick(at moment: Nanoseconds?) {
        guard moment != armed, let timer else { return }
        armed = moment
        var setting = itimerspec()
        if let moment {
            // Zero would disarm the timer.
            let ns = max(1, moment.rawValue)
            setting.it_value.tv_sec = Int(ns / 1_000_000_000)
            setting.it_value.tv_nsec = Int(ns % 1_000_000_000)
        }
        timer_settime(timer, Int32(TIMER_ABSTIME), &setting, nil)
    }

    /// The timer went off before the guest was entered, on a host that was busy elsewhere: kicked now, time after time, it would get no
    /// instruction. What went off may also be what the timer was set to before.
    private func letRun() {
        let soonest = hostTime() + capabilities.shortestRun
        if let armed, armed < soonest { armKick(at: soonest) }
    }

    public var kicker: Kicker {
        let thread = ckvm_gettid()
        let target = KickTarget(vcpu)
        return Kicker { _ = ckvm_kick(thread, Self.kickSignal, target.vcpu.run) }
    }
}

/// Keeps a vCPU's shared area mapped for those that may still kick it: the signal handler writes to it.
private struct KickTarget: @unchecked Sendable {
    let vcpu: KVMVirtualCPU
    init(_ vcpu: KVMVirtualCPU) { self.vcpu = vcpu }
}
