/// How fast an engine executes kernel-mode code on this host, found by trying it out: what `--engine auto` compares.
///
/// A KVM that emulates kernel-mode code is a hundred times slower than the soft engine there; one on hardware is some
/// tens of times faster.
public struct EngineSpeed: Sendable {
    /// Instructions a second.
    public var instructionsPerSecond: Double

    /// Long enough for an emulated loop of some thousand instructions, too short to notice.
    private static let duration = Nanoseconds.milliseconds(2)
    private static let warmUp = Nanoseconds.microseconds(500)
    /// MOV ECX, -1; DEC ECX; JNZ to the DEC: in real mode, at CPL 0.
    private static let loop: [UInt8] = [0x66, 0xB9, 0xFF, 0xFF, 0xFF, 0xFF, 0x66, 0x49, 0x75, 0xFC]

    /// Runs a loop for two milliseconds, after one that warms it up.
    public init(of host: EngineHost) throws {
        instructionsPerSecond = 0
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        let boot = try FlatBoot.load(Self.loop, at: .init(0x1000), into: memory)
        let model = try CPUModel(named: "x86-64-v1", timestamps: .hide, supported: host.supportedFeatures())
        let engine = try host.makeEngine(memory: memory, model: model, trapping: [])
        try engine.setState(boot.state)
        defer { engine.armKick(at: nil) }
        for span in [Self.warmUp, Self.duration] {
            let before = try engine.registers().general.rcx & 0xFFFF_FFFF
            let start = hostTime()
            while hostTime() < start + span {
                engine.armKick(at: start + span)
                guard case .kicked = try engine.enter(until: .none) else { break }
            }
            let after = try engine.registers().general.rcx & 0xFFFF_FFFF
            instructionsPerSecond = 2 * Double((before &- after) & 0xFFFF_FFFF) / (hostTime() - start).seconds
        }
    }

    /// Such as "110 million instructions a second".
    public var text: String {
        let millions = instructionsPerSecond / 1e6
        return (millions < 10 ? "\((millions * 10).rounded() / 10)" : "\(Int(millions))") + " million instructions a second"
    }
}
