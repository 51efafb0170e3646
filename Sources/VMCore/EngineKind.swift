/// Which engine runs a guest.
public enum EngineKind: String, CaseIterable, Sendable {
    /// `/dev/kvm`
    case kvm
    /// vmrr's own processor in software
    case soft
}

/// What executes guests here: KVM with what it can on this host, or the soft engine, which needs nothing of it.
public enum EngineHost: Sendable {
    case kvm(KVMSystem, EngineCapabilities)
    case soft

    /// Opens KVM and tries out what it can.
    ///
    /// - Throws: `HostError` where there is no KVM, or no permission to use it.
    public static func openKVM() throws(HostError) -> EngineHost {
        let system = try KVMSystem()
        return .kvm(system, try SelfTests(system: system).capabilities())
    }

    public var kind: EngineKind {
        switch self {
        case .kvm: .kvm
        case .soft: .soft
        }
    }

    /// What a guest can be shown of the processor, in the form of CPUID's answers.
    public func supportedFeatures() throws(HostError) -> [CPUIDEntry] {
        switch self {
        case .kvm(let system, _): try system.supportedFeatures()
        case .soft: SoftEngine.supportedFeatures
        }
    }

    /// The ways of the processor here; nil for the soft engine, which has those that it is given.
    public var profile: ProcessorProfile? {
        switch self {
        case .kvm(_, let capabilities): capabilities.profile
        case .soft: nil
        }
    }

    /// The ways that the soft engine takes on here: those of the processor under KVM, or AMD's where there is no KVM that can
    /// be used.
    public static let softProfile: ProcessorProfile = {
        guard var profile = try? SelfTests(system: KVMSystem()).profile() else { return ProcessorProfile(of: .amd) }
        // Its guests see what the model has: they would use what else there is.
        profile.ownFeatures = nil
        return profile
    }()

    /// How guests see time stamps here where nobody says otherwise.
    public var defaultTimestamps: TimestampPolicy { kind == .soft ? .record : .hide }

    /// Makes an engine for a machine's memory, in which port reads stand for the instructions `trapped`.
    public func makeEngine(memory: GuestMemory, model: CPUModel, trapping trapped: TrappedInstructions) throws(HostError)
        -> any Engine {
        switch self {
        case .kvm(let system, let capabilities):
            let engine = try KVMEngine(system: system, memory: memory, model: model, capabilities: capabilities)
            engine.trapped = trapped
            return engine
        case .soft:
            let engine = try SoftEngine(memory: memory, model: model)
            engine.trapped = trapped
            return engine
        }
    }
}
