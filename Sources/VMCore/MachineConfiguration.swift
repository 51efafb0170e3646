/// What to boot.
public enum GuestImage: Sendable {
    /// A flat real-mode image and where it is loaded.
    case flat([UInt8], at: GuestPhysicalAddress)
    /// A multiboot 1 kernel with its command line and modules.
    case multiboot([UInt8], commandLine: String, modules: [BootModule])
    /// A Linux kernel as distributions ship it.
    case linux(LinuxGuest)
    /// A kernel in an ELF file that is started by its PVH note.
    case pvh(LinuxGuest)

    /// Whether the guest expects a machine with ACPI.
    var wantsACPI: Bool {
        switch self {
        case .flat, .multiboot: false
        case .linux, .pvh: true
        }
    }
}

/// Everything that makes a machine, apart from the outside world.
public struct MachineConfiguration: Sendable {
    public var image: GuestImage
    public var memoryBytes: UInt64
    public var cpuModel = "auto"
    /// The ways of the processor that the soft engine is, nil for those of the host's; a KVM has its own.
    public var profile: ProcessorProfile? = ProcessorProfile(of: .amd)
    /// Nil for what suits the engine.
    public var timestamps: TimestampPolicy?
    public var testDevice = false
    /// Whether the machine has the event timer, and ACPI tables that describe it and all else.
    public var acpi: Bool
    /// What the real-time clock shows at power-on, in seconds since 1970 UTC.
    public var wallClockStart: Int64

    public init(image: GuestImage, memoryBytes: UInt64, wallClockStart: Int64) {
        self.image = image
        self.memoryBytes = memoryBytes
        self.wallClockStart = wallClockStart
        acpi = image.wantsACPI
    }
}

/// A machine that has been put together and stands before an instruction: its first, or the one after an exit of a
/// recording.
public struct BuiltMachine {
    public var engine: any Engine
    public var platform: Platform
    public var memoryBytes: UInt64
    public var model: CPUModel
    public var timestamps: TimestampPolicy
    /// The last exit that it has made.
    public var exit = ExitNumber.start
    /// The instructions that were replaced.
    public var sites: [InstructionSites.Site]
    /// What a guest could do here that can't be recorded.
    public var unrecordable: [String]
    /// What the user should know.
    public var notices: [String]

    public init(engine: any Engine, platform: Platform, memoryBytes: UInt64, model: CPUModel,
                timestamps: TimestampPolicy, exit: ExitNumber = .start, sites: [InstructionSites.Site],
                unrecordable: [String], notices: [String] = []) {
        self.engine = engine
        self.platform = platform
        self.memoryBytes = memoryBytes
        self.model = model
        self.timestamps = timestamps
        self.exit = exit
        self.sites = sites
        self.unrecordable = unrecordable
        self.notices = notices
    }
}

extension BuiltMachine {
    /// Has the engine go on counting the timestamp counter only where that is machine time.
    public func keepCounter(with clock: MachineClock.Source) {
        if !clock.isCounter { engine.timestampCounter = nil }
    }
}

extension MachineConfiguration {
    /// Makes memory, loads the image, makes the engine.
    ///
    /// - Throws: `BootError` where the image is bad, `HostError` where the host or the engine lacks something.
    public func build(on host: EngineHost) throws -> BuiltMachine {
        let timestamps = timestamps ?? host.defaultTimestamps
        switch (timestamps, host.kind) {
        case (.record, .kvm): throw HostError.cannotRecordTimestamps
        case (.pass, .soft):
            // The soft engine reads no counter of the host's.
            var other = self
            other.timestamps = .record
            return try other.build(on: host)
        default: break
        }
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: memoryBytes))
        let loaded = try load(into: memory, timestamps, on: host)
        if acpi { ACPITables().write(into: memory) }
        var model = try CPUModel(named: cpuModel, timestamps: timestamps, supported: host.supportedFeatures())
        model.profile = host.profile ?? profile ?? EngineHost.softProfile
        let engine = try host.makeEngine(memory: memory, model: model, trapping: loaded.sites.trapped(by: timestamps))
        try engine.setState(loaded.boot.state)
        var chipset = ChipsetConfiguration(memoryBytes: memoryBytes, wallClockStart: wallClockStart,
                                           testDevice: testDevice)
        chipset.hpet = acpi
        let platform = Platform(chipset)
        return BuiltMachine(engine: engine, platform: platform, memoryBytes: memoryBytes, model: model,
                            timestamps: timestamps, sites: loaded.sites,
                            unrecordable: host.kind == .soft ? [] : Self.unrecordable(timestamps), notices: loaded.notices)
    }

    private struct Loaded {
        var boot: BootResult
        /// The instructions that were replaced.
        var sites: [InstructionSites.Site] = []
        var notices: [String] = []
    }

    /// Loads the image, and replaces the instructions that are to be trapped.
    private func load(into memory: GuestMemory, _ timestamps: TimestampPolicy, on host: EngineHost) throws(BootError)
        -> Loaded {
        // Linux reads the counter in a few places without a look at CPUID: for the first task's stack protector, for one.
        // With the soft engine too, which would record them where they are: KVM replays what it records only with them replaced.
        let hides = timestamps == .hide
        let showsOwn = host.profile?.ownFeatures != nil
        let wanted: TrappedInstructions = showsOwn ? [.timestamps, .identification] : .timestamps
        var notices: [String] = []
        if let guest = linux, timestamps == .trap || hides && guest.bootProtocol == .automatic {
            do {
                let trapped = try LinuxTraps.set(wanted, in: guest.kernel)
                var loaded = try start(trapped, of: guest, timestamps, in: memory)
                if showsOwn {
                    loaded.notices.append("this KVM shows programs in the guest the processor's own features, whatever the CPU "
                        + "model says: what they make of its timestamp counter or random numbers isn't recorded")
                }
                return loaded
            } catch {
                guard hides, !error.isUsage, !LinuxPayload.isDamaged(guest.kernel) else { throw error }
                notices.append("what reads the timestamp counter in this kernel can't be found (\(error)): where it does so "
                    + "although CPUID hides it, "
                    + (host.kind == .kvm ? "a replay may differ" : "the trace doesn't replay under KVM"))
            }
        }
        if hides, showsOwn, linux != nil {
            notices.append("this KVM shows guests the processor's own features, its timestamp counter and random numbers too: what a "
                + "kernel makes of them isn't recorded")
        }
        let boot: BootResult
        switch image {
        case .flat(let bytes, let address):
            boot = try FlatBoot.load(bytes, at: address, into: memory)
        case .multiboot(let bytes, let commandLine, let modules):
            boot = try Multiboot.load(bytes, commandLine: commandLine, modules: modules, into: memory)
        case .linux(let guest):
            boot = try LinuxBoot.load(guest, into: memory)
        case .pvh(let guest):
            boot = try PVHBoot.load(guest, into: memory)
        }
        let sites = boot.code.flatMap { InstructionSites.find(timestamps == .trap ? wanted : .timestamps, in: $0, of: memory) }
        if timestamps == .trap {
            InstructionSites.replace(sites, in: memory)
            return Loaded(boot: boot, sites: sites)
        }
        if hides, host.kind == .kvm, !sites.isEmpty {
            notices.append("the image holds \(sites.count) timestamp instructions (RDTSC, RDTSCP), the first at "
                + "\(hex(sites[0].address.rawValue)); CPUID hides the counter, but a guest that executes them all the "
                + "same won't replay: use --timestamps trap")
        }
        return Loaded(boot: boot, notices: notices)
    }

    /// Starts a kernel that has had instructions replaced.
    private func start(_ trapped: LinuxTraps.Trapped, of guest: LinuxGuest, _ timestamps: TimestampPolicy,
                       in memory: GuestMemory) throws(BootError) -> Loaded {
        // Programs see in CPUID whether there is a counter, and the vDSO is one of them.
        let words = timestamps == .trap ? " " + LinuxTraps.commandLine : ""
        let changed = LinuxGuest(kernel: trapped.kernel, commandLine: guest.commandLine + words, initrd: guest.initrd)
        var loaded = Loaded(boot: try PVHBoot.load(changed, into: memory), sites: trapped.sites)
        if case .linux = image {
            let others = trapped.sites.count(of: .identification)
            loaded.notices.append("to have its \(trapped.sites.count(of: .timestamps)) timestamp instructions"
                + (others == 0 ? "" : " and \(others) CPUID instructions") + " replaced the kernel is started "
                + "unpacked, where it was linked (no KASLR)" + (words.isEmpty ? "" : ", and with\(words)"))
        }
        return loaded
    }

    /// The guest where it is a Linux kernel.
    private var linux: LinuxGuest? {
        switch image {
        case .linux(let guest): guest
        case .pvh(let guest): guest.isLinux ? guest : nil
        case .flat, .multiboot: nil
        }
    }

    private static func unrecordable(_ timestamps: TimestampPolicy) -> [String] {
        var list = ["RDRAND and RDSEED where the host has them (hidden in CPUID)"]
        switch timestamps {
        case .hide: list.insert("RDTSC and RDTSCP (hidden in CPUID)", at: 0)
        case .trap: list.insert("RDTSC and RDTSCP in code that the guest loads or makes itself", at: 0)
        case .pass: list.insert("RDTSC and RDTSCP: the guest reads the host's counter", at: 0)
        case .record: break
        }
        return list
    }
}

/// The two digests that say whether two machines are in the same state, and the strict one beside them.
public struct MachineDigests: Codable, Equatable, Sendable {
    /// XXH3-128 of the processor's state.
    public var state: Digest128
    /// Memory, with page-table accessed and dirty bits masked.
    public var memory: Digest128
    /// Memory, bit by bit.
    public var memoryStrict: Digest128

    public init(state: Digest128, memory: Digest128, memoryStrict: Digest128) {
        self.state = state
        self.memory = memory
        self.memoryStrict = memoryStrict
    }
}

extension Machine {
    /// The digests of the present state. The guest stands where `run` stopped it.
    public func digests() throws -> MachineDigests {
        MachineDigests(state: try engine.state().digest, memory: MemoryDigest.ofAll(engine.memory, kind: .masked),
                       memoryStrict: MemoryDigest.ofAll(engine.memory, kind: .strict))
    }
}
