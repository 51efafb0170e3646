import CHostFloat
import Glibc

/// The x87, MMX, SSE and AVX registers of the soft engine, in one block of raw memory.
///
/// Invariant: the memory is as large as `bytes` and outlives every copy; `SoftEngine` owns both.
struct FloatingPointFile {
    let raw: UnsafeMutableRawPointer

    static let bytes = 1024

    /// Byte offsets. YMM0–YMM15 of 32 bytes come first.
    private enum Offset {
        // Each with room for 16 bytes behind a full operand.
        static let operand = 512
        static let result = 576
        static let firstCopy = 640
        static let secondCopy = 704
        /// As FNSAVE has it with 32-bit operands in protected mode. Source: Intel SDM Vol. 1, figures 8-9 and 8-11.
        static let x87 = 768
        static let mxcsr = 960
        static let last = 968
    }

    /// Offsets in the x87's image.
    enum Image {
        static let bytes = 108
        static let control = 0
        static let status = 4
        static let tags = 8
        static let pointers = 12
        static let registers = 28
    }

    init() {
        raw = .allocate(byteCount: Self.bytes, alignment: 64)
        memset(raw, 0, Self.bytes)
        load(FloatingPointState())
    }

    func free() { raw.deallocate() }

    @inline(__always) func vector(_ number: UInt8) -> UnsafeMutableRawPointer { raw + 32 * Int(number & 15) }
    /// An operand from memory.
    var operand: UnsafeMutableRawPointer { raw + Offset.operand }
    /// A result that doesn't go to one of these registers.
    var result: UnsafeMutableRawPointer { raw + Offset.result }
    var firstCopy: UnsafeMutableRawPointer { raw + Offset.firstCopy }
    var secondCopy: UnsafeMutableRawPointer { raw + Offset.secondCopy }

    var mxcsr: UInt32 {
        get { raw.load(fromByteOffset: Offset.mxcsr, as: UInt32.self) }
        nonmutating set { raw.storeBytes(of: newValue, toByteOffset: Offset.mxcsr, as: UInt32.self) }
    }

    /// Of the x87: see `FloatingPointState`.
    var last: LastInstruction {
        get { raw.load(fromByteOffset: Offset.last, as: LastInstruction.self) }
        nonmutating set { raw.storeBytes(of: newValue, toByteOffset: Offset.last, as: LastInstruction.self) }
    }

    // MARK: x87

    var image: UnsafeMutableRawPointer { raw + Offset.x87 }
    /// ST(i), 10 bytes.
    func st(_ i: Int) -> UnsafeMutableRawPointer { image + Image.registers + 10 * (i & 7) }

    var control: UInt16 {
        get { image.load(fromByteOffset: Image.control, as: UInt16.self) }
        nonmutating set { image.storeBytes(of: newValue, toByteOffset: Image.control, as: UInt16.self) }
    }
    var status: UInt16 {
        get { image.load(fromByteOffset: Image.status, as: UInt16.self) }
        nonmutating set { image.storeBytes(of: newValue, toByteOffset: Image.status, as: UInt16.self) }
    }
    /// Two bits a register; 3 is empty. The other values are right after an x87 instruction alone.
    var tagWord: UInt16 {
        get { image.load(fromByteOffset: Image.tags, as: UInt16.self) }
        nonmutating set { image.storeBytes(of: newValue, toByteOffset: Image.tags, as: UInt16.self) }
    }

    private static let topMask: UInt16 = 7 << 11
    var top: Int { Int(status >> 11 & 7) }
    /// An unmasked exception waits.
    var hasPendingException: Bool { status & 0x80 != 0 }

    /// A bit a register, 1 where it is in use.
    var tags: UInt8 {
        get { (0..<8).reduce(0) { $0 | (tagWord >> (2 * $1) & 3 != 3 ? 1 << UInt8($1) : 0) } }
        nonmutating set { tagWord = (0..<8).reduce(0) { $0 | (newValue >> $1 & 1 == 0 ? 3 << UInt16(2 * $1) : 0) } }
    }

    /// Executes an x87 instruction; see `chostfloat_x87` for the index. `flags` are the arithmetic ones alone.
    func execute(x87 index: UInt16, memory: UnsafeMutableRawPointer, flags: inout UInt64) {
        chostfloat_x87(UInt32(min(index, 575)), image, memory, &flags)
        // The host's instruction is none of the guest's.
        memset(image + Image.pointers, 0, Image.registers - Image.pointers)
    }

    /// Lets the processor work out what follows from what was loaded: tags, pending exceptions, reserved bits.
    func settle() {
        // FNSTSW AX, which waits for nothing and changes nothing here.
        var flags: UInt64 = 0
        execute(x87: 7 * 64 + 0x20, memory: operand, flags: &flags)
    }

    /// Moves the top of the stack without moving what the registers hold.
    func setTop(_ new: Int) {
        let distance = (new - top) & 7
        if distance != 0 {
            // ST(i) is the register TOP + i.
            let length = 10 * distance
            memcpy(firstCopy, st(0), 80)
            memcpy(st(0), firstCopy + length, 80 - length)
            memcpy(st(0) + (80 - length), firstCopy, length)
        }
        status = status & ~Self.topMask | UInt16(new & 7) << 11
    }

    /// What every MMX instruction does besides. Source: Intel SDM Vol. 1, 9.5.1.
    func enterMMX() {
        if top != 0 { setTop(0) }
        tagWord = 0
    }

    // MARK: State

    func load(_ state: FloatingPointState) {
        control = state.controlWord
        status = state.statusWord
        tags = state.tags
        mxcsr = state.mxcsr
        last = state.last
        for i in 0..<80 { (st(0) + i).storeBytes(of: i < state.st.count ? state.st[i] : 0, as: UInt8.self) }
        for i in 0..<256 {
            let place = vector(UInt8(i / 16)) + i % 16
            place.storeBytes(of: i < state.xmm.count ? state.xmm[i] : 0, as: UInt8.self)
            (place + 16).storeBytes(of: i < state.ymmHigh.count ? state.ymmHigh[i] : 0, as: UInt8.self)
        }
        settle()
    }

    var state: FloatingPointState {
        var state = FloatingPointState()
        state.controlWord = control
        state.statusWord = status
        state.tags = tags
        state.mxcsr = mxcsr
        state.last = last
        state.st = Array(UnsafeRawBufferPointer(start: st(0), count: 80))
        state.xmm = (0..<16).flatMap { UnsafeRawBufferPointer(start: vector($0), count: 16) }
        state.ymmHigh = (0..<16).flatMap { UnsafeRawBufferPointer(start: vector($0) + 16, count: 16) }
        return state
    }
}
